import pytest
import tiny_language_writers as tiny
import torch
from safetensors.torch import load_file
from tiny_method_settings import BLIP as SETTINGS
from tiny_method_settings import BLIP_NETWORK as NETWORK
from tiny_method_settings import BLIP_TEXT as TEXT

from medim.baselines import get_method
from medim.baselines.blip import BlipNetwork, BlipWriter, blip_config
from medim.baselines.method_settings import read_settings
from medim.system_loading import load_system

PUBLISHED = BlipNetwork(  # models/blip.py, configs/med_config.json
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
     "image_size": 384, "patch_size": 16, "layer_norm_eps": 1e-6},
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
     "max_position_embeddings": 512}, 0.1, 3,
)  # fmt: skip


def writer(words=None):
    torch.manual_seed(0)
    return BlipWriter(read_settings(BlipNetwork, NETWORK, "network"), words or tiny.words()).eval()


def test_six_pairs_are_learned_saved_and_written_again(tmp_path):
    logs = []
    get_method("blip").train(tiny.inputs(tmp_path, SETTINGS, lambda step, values: logs.append(values), number=2))
    assert logs[-1]["val/cxr/nats_per_token"] < 0.5
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert "network.text_decoder.cls.predictions.decoder.weight" not in state  # tied
    system = load_system(tmp_path / "out")
    for name, pairs in tiny.PAIRS.items():
        found = system.generate("image_to_report", name, pairs[:2], range(2))
        assert [(s.row, s.prompt, s.report) for s in found] == [("BLIP", p.prompt, p.report) for p in pairs[:2]]


def test_the_loss_is_smoothed_cross_entropy_over_every_token_of_prompt_and_report():
    net, pictures = writer(), tiny.images()
    ids, mask = net.words.batch(tiny.TEXTS)
    with torch.no_grad():
        log_p = net.network(pixel_values=net._pixels(pictures), input_ids=ids).logits[:, :-1].log_softmax(-1)
        loss = net.loss(pictures, tiny.TEXTS, torch.Generator())
        total, number = net.nats(pictures, tiny.TEXTS)
    own = -log_p.gather(-1, ids[:, 1:, None])[..., 0][mask[:, 1:]]
    uniform = -log_p.mean(-1)[mask[:, 1:]]
    torch.testing.assert_close(loss, (0.9 * own + 0.1 * uniform).mean())
    torch.testing.assert_close(total, own.sum())
    assert int(number) == len(own) == sum(map(len, net.words.encode(tiny.TEXTS)))


def test_a_text_depends_on_its_picture_alone():
    net, pictures = writer(words=tiny.words(max_tokens=12, cut=True)), tiny.images()[::2]
    with torch.no_grad():  # far apart, so that the texts differ
        for parameter in net.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    together = net.write(pictures, range(3))
    assert together == [net.write(pictures[row : row + 1], [0])[0] for row in range(3)]
    assert len(set(together)) > 1


def test_sizes_at_the_paper(tmp_path):
    words = tiny.published_words(tmp_path, "bert", 30522)
    with torch.device("meta"):
        net = BlipWriter(PUBLISHED, words)
    assert round(tiny.millions(net)) == 224
    assert net.network.text_decoder.label_smoothing == 0.1


def test_whole_texts_need_positions():
    short = read_settings(BlipNetwork, {**NETWORK, "text": {**TEXT, "max_position_embeddings": 24}}, "network")
    with pytest.raises(ValueError, match="need more than the 24 positions"):
        blip_config(short, tiny.words())
    with pytest.raises(ValueError, match=r"raise network\.text"):
        writer().nats(tiny.images()[:1], ["a" * 90])
