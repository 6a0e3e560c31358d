import os
import signal

import pytest
import tiny_language_writers as tiny
import torch
from tiny_method_settings import LLAVA_RAD as SETTINGS
from tiny_method_settings import LLAVA_RAD_NETWORK as NETWORK

from medim.baselines import get_method
from medim.baselines.llava_rad import LlavaRadNetwork, LlavaRadSettings, LlavaRadWriter, build_llava_rad
from medim.baselines.lora import LoraLinear
from medim.baselines.method_settings import read_settings
from medim.baselines.picture_encoders import CLIP_MEAN, CLIP_STD
from medim.system_loading import load_system
from medim.training import Interrupted

LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["*_proj"]}
PUBLISHED = LlavaRadNetwork(
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
     "image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-6},
    {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
     "rms_norm_eps": 1e-5}, "USER: <image> ASSISTANT:", None, read_settings(
         LlavaRadNetwork, NETWORK, "network").decoding,
)  # fmt: skip


def settings(**changes):
    return read_settings(LlavaRadSettings, {**SETTINGS, **changes}, "llava_rad")


def writer(**changes):
    torch.manual_seed(0)
    net = LlavaRadWriter(read_settings(LlavaRadNetwork, {**NETWORK, **changes}, "network"), tiny.words())
    with torch.no_grad():  # far apart, so that texts differ and end
        for parameter in net.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return net.eval()


def test_six_pairs_are_learned_saved_and_written_again(tmp_path):
    get_method("llava_rad").train(tiny.inputs(tmp_path, SETTINGS, number=2))
    system = load_system(tmp_path / "out")
    for name, pairs in tiny.PAIRS.items():
        found = system.generate("image_to_report", name, pairs[:2], range(2))
        assert [(s.row, s.prompt, s.report) for s in found] == [("LLaVA-Rad", p.prompt, p.report) for p in pairs[:2]]


def test_the_first_stage_moves_the_projector_alone_and_sees_no_prompt():
    net = build_llava_rad(settings(), tiny.TEXTS)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(4):
        net.begin_step(step)
        optimiser.zero_grad(set_to_none=True)
        net.loss(tiny.images(), tiny.TEXTS, torch.Generator()).backward()
        optimiser.step()
        moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
        projector = {f"network.model.multi_modal_projector.linear_{n}.{kind}"
                     for n in (1, 2) for kind in ("weight", "bias")}  # fmt: skip
        assert (moved == projector) if step < 3 else (moved > projector), step
        assert net.plain == (step < 3)
    assert any("vision_tower" in name for name in moved) and any("language_model" in name for name in moved)


@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_killed_training_goes_on_across_the_stages(tmp_path, stop_at):
    optim = {**tiny.OPTIM, "steps": 4, "log_every": 1, "ema": 0.9}
    short = {**SETTINGS, "projector_steps": 2, "optim": optim}
    files = []
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()

        def stop(step, _, name=name):
            if name == "cut" and step == stop_at and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                os.kill(os.getpid(), signal.SIGTERM)

        given = tiny.inputs(tmp_path / name, short, stop)
        if name == "cut":
            with pytest.raises(Interrupted):
                get_method("llava_rad").train(given)
        get_method("llava_rad").train(given)
        files.append((tmp_path / name / "out" / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_rows_are_those_of_transformers_with_its_picture_tokens():
    net, pictures = writer(), tiny.images()
    before, after = net.pieces
    mark, patches = net.words.padding, 4
    net.network.config.image_token_id = mark
    total, number = net.nats(pictures, tiny.TEXTS)
    expected = torch.zeros(())
    for row, ids in enumerate(net.words.encode(tiny.TEXTS)):
        line = torch.tensor([[net.words.begin, *before, *[mark] * patches, *after, *ids]])
        labels = line.clone()
        labels[:, : -len(ids)] = -100
        pixels = (pictures[row : row + 1] + 1) / 2
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
        pixels = (pixels - mean) / std
        expected = expected + net.network(input_ids=line, pixel_values=pixels, labels=labels).loss * len(ids)
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-3)
    assert int(number) == sum(map(len, net.words.encode(tiny.TEXTS)))


def test_a_text_depends_on_its_picture_alone():
    net, pictures = writer(), tiny.images()
    together = net.write(pictures, range(6))
    assert together == [net.write(pictures[row : row + 1], [9])[0] for row in range(6)]
    assert len(set(together)) > 1


def test_lora_leaves_the_rest_of_the_language_model_alone():
    net = LlavaRadWriter(read_settings(LlavaRadNetwork, {**NETWORK, "lora": LORA}, "network"), tiny.words())
    net.adapt(net.sizes.lora)
    learning = {name for name, value in net.named_parameters() if value.requires_grad}
    held = {n for n in learning if "language_model" in n or "lm_head" in n}
    assert held and all(name.endswith((".down", ".up")) for name in held)
    assert sum(isinstance(part, LoraLinear) for part in net.modules()) == 2 * 7
    again = LlavaRadWriter.of_config(net.config())
    again.load_state_dict(net.state_dict())


def test_random_weights_do_not_stand_still():
    with pytest.raises(ValueError, match="'vision', whose weights are random"):
        build_llava_rad(settings(frozen=["vision"]), tiny.TEXTS)
    with pytest.raises(ValueError, match="'language', whose weights are random"):
        build_llava_rad(settings(network={**NETWORK, "lora": LORA}), tiny.TEXTS)
    with pytest.raises(ValueError, match="'ears', parts are vision, language"):
        build_llava_rad(settings(frozen=["ears"]), tiny.TEXTS)
    with pytest.raises(ValueError, match=r"projector_steps must lie in \[0, optim\.steps = 80\), got 80"):
        settings(projector_steps=80)


def test_sizes_at_the_paper(tmp_path):
    words = tiny.published_words(tmp_path, "llama", 32000)
    with torch.device("meta"):
        net = LlavaRadWriter(PUBLISHED, words)
    assert round(tiny.millions(net) + 0.59) == 6845  # 6.85 B with the pooler of 0.59 M, which is left out
    assert net.network.model.vision_tower.embeddings.position_embeddings.shape[1] == 1 + 1369
