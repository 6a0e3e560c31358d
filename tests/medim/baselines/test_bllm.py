import os
import signal
from dataclasses import replace

import pytest
import tiny_language_writers as tiny
import torch
from safetensors.torch import save_file
from tiny_method_settings import BLLM as SETTINGS
from tiny_method_settings import BLLM_NETWORK as NETWORK
from tiny_method_settings import BOOTSTRAPPING

from medim.baselines import get_method
from medim.baselines.bllm import BllmNetwork, BllmSettings, BllmWriter, build_bllm
from medim.baselines.bllm_induction import ReportBank
from medim.baselines.lora import LoraLinear, LoraSettings
from medim.baselines.method_settings import read_settings
from medim.baselines.report_writer import save_writer
from medim.system_loading import load_system
from medim.training import Interrupted

BANK = ReportBank({name: [one.full_text for one in pairs] for name, pairs in tiny.PAIRS.items()})
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["*.q_proj", "*.v_proj"]}


def settings(**changes):
    return read_settings(BllmSettings, {**SETTINGS, **changes}, "bllm")


def writer(**changes):
    torch.manual_seed(0)
    net = build_bllm(settings(), BANK, tiny.TEXTS)
    net.plan = replace(net.plan, **changes)
    with torch.no_grad():  # far apart, so that texts differ and end
        for parameter in net.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    return net.eval()


def test_six_pairs_are_learned_saved_and_written_again(tmp_path):
    get_method("bllm").train(tiny.inputs(tmp_path, SETTINGS, number=2))
    system = load_system(tmp_path / "out")
    for name, pairs in tiny.PAIRS.items():
        found = system.generate("image_to_report", name, pairs[:2], range(2))
        assert [(s.row, s.prompt, s.report) for s in found] == [("BLLM", p.prompt, p.report) for p in pairs[:2]]


def test_the_triplet_reaches_the_projection_and_the_picture():
    net, pictures = writer(margin=100.0), tiny.images()
    seen = net.pictures(pictures)
    coarse = net.draw_coarse(seen, range(6))
    assert seen.requires_grad
    net.induction(seen, coarse, tiny.TEXTS, torch.Generator().manual_seed(0)).backward()
    parts = (net.network.language_projection.weight, net.network.vision_model.embeddings.patch_embedding.weight,
             net.network.language_model.model.layers[0].self_attn.q_proj.weight, net.network.query_tokens)  # fmt: skip
    assert all(part.grad is not None and bool(part.grad.abs().sum() > 0) for part in parts)


def test_a_step_down_the_triplet_brings_the_coarse_report_nearer_to_its_domain():
    net, pictures = writer(margin=100.0), tiny.images()
    coarse = net.draw_coarse(net.pictures(pictures), range(6))
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)

    def loss():
        return net.induction(net.pictures(pictures), coarse, tiny.TEXTS, torch.Generator().manual_seed(0))

    before = loss()
    before.backward()
    optimiser.step()
    assert float(loss().detach()) < float(before.detach())


def test_the_refined_report_follows_the_picture_at_the_same_coarse_report():
    net = writer()
    seen = net.pictures(tiny.images())
    coarse = [net.words.pieces("Normal")] * 6
    prompts = net.refine_prompts(seen, coarse)
    texts = net.decoder.write(prompts, net.sizes.answer, [0] * 6)
    assert len({tuple(ids) for ids in texts}) > 1
    one = net.refine_prompts(seen[:1].expand(2, -1, -1), [net.words.pieces("Normal"), net.words.pieces("Glands")])
    nats = net.decoder.nats(one, net.words.encode([tiny.TEXTS[0]] * 2)).view(2, -1).sum(1)
    assert abs(float((nats[0] - nats[1]).detach())) > 1e-3  # and the coarse report is seen too


def test_a_text_depends_on_its_picture_and_seed_alone():
    net, pictures = writer(), tiny.images()
    seeds = range(20, 26)
    together = net.write(pictures, seeds)
    assert together == [net.write(pictures[row : row + 1], [seed])[0] for row, seed in enumerate(seeds)]
    assert len(set(net.write(pictures[:1].expand(6, -1, -1, -1), seeds))) > 1


def test_the_stages_follow_the_step():
    net, pictures = writer(align_steps=2, every=2, coarse_weight=0.5, triplet_weight=0.0), tiny.images()
    plain = net.decoder.nats(net.prompts(pictures), net.words.encode(tiny.TEXTS)).mean()

    def loss(step):
        net.begin_step(step)
        return net.loss(pictures, tiny.TEXTS, torch.Generator().manual_seed(1))

    torch.testing.assert_close(loss(1), plain)
    torch.testing.assert_close(loss(3), 0.5 * plain)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randperm(6, generator=draw)[:4].tolist()
    seeds = torch.randint(2**62, (4,), generator=draw).tolist()
    seen, texts = net.pictures(pictures)[rows], [tiny.TEXTS[row] for row in rows]
    prompts = net.refine_prompts(seen, net.draw_coarse(seen, seeds))
    refined = net.decoder.nats(prompts, net.words.encode(texts)).mean()
    torch.testing.assert_close(loss(2), 0.5 * plain + refined)


def test_a_killed_training_goes_on_across_the_stages(tmp_path):
    plan = {**BOOTSTRAPPING, "align_steps": 1, "every": 1}
    optim = {**tiny.OPTIM, "steps": 3, "log_every": 1}
    short = {**SETTINGS, "bootstrapping": plan, "optim": optim, "network": {**NETWORK, "lora": None}}
    files = []
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()

        def stop(step, _, name=name):
            if name == "cut" and step == 2 and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                os.kill(os.getpid(), signal.SIGTERM)

        given = tiny.inputs(tmp_path / name, short, stop)
        if name == "cut":
            with pytest.raises(Interrupted):
                get_method("bllm").train(given)
        get_method("bllm").train(given)
        files.append((tmp_path / name / "out" / "model.safetensors").read_bytes())
    assert files[0] == files[1]


def test_queries_differ_from_the_start():
    queries = BllmWriter(settings().network, tiny.words()).network.query_tokens[0]
    assert float(torch.pdist(queries.detach()).min()) > 0


def test_a_pretrained_start_stands_still(tmp_path):
    torch.manual_seed(3)
    source = BllmWriter(settings().network, tiny.words()).network
    folders = {"blip2": tmp_path / "blip2", "language": tmp_path / "vicuna"}
    for folder in folders.values():
        folder.mkdir()
    save_file(source.state_dict(), folders["blip2"] / "model.safetensors")
    save_file(source.language_model.state_dict(), folders["language"] / "model.safetensors")
    given = settings(
        start={name: str(folder) for name, folder in folders.items()}, frozen=["vision", "qformer"],
        network={**NETWORK, "lora": LORA},
    )  # fmt: skip
    net = build_bllm(given, BANK, tiny.TEXTS).train()
    assert torch.equal(net.network.query_tokens, source.query_tokens)
    assert torch.equal(net.network.language_model.lm_head.weight, source.language_model.lm_head.weight)
    learning = {name for name, value in net.named_parameters() if value.requires_grad}
    projection = {"network.language_projection.weight", "network.language_projection.bias"}
    low_rank = {name for name in learning if name.endswith((".down", ".up"))}
    assert learning == projection | low_rank and len(low_rank) == 2 * 2 * 2
    assert not net.network.qformer.training and not net.network.vision_model.training and net.training
    assert not [name for name, value in net.named_parameters() if "query_tokens" in name and value.requires_grad]


def test_lora_is_merged_where_the_folder_is_read(tmp_path):
    torch.manual_seed(3)
    net = BllmWriter(replace(settings().network, lora=LoraSettings(**LORA)), tiny.words())
    net.adapt(net.sizes.lora)
    for part in net.modules():
        if isinstance(part, LoraLinear):
            torch.nn.init.normal_(part.up)
    save_writer(net.eval(), tmp_path, {"system": "medim.baselines.bllm"})
    loaded = load_system(tmp_path).writer
    assert not any(isinstance(part, LoraLinear) for part in loaded.modules())
    (ours, number), (theirs, _) = (one.nats(tiny.images(), tiny.TEXTS) for one in (net, loaded))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-3)
    assert int(number) == sum(map(len, net.words.encode(tiny.TEXTS)))


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="'qformer', whose weights are random"):
        build_bllm(settings(frozen=["qformer"]), BANK, tiny.TEXTS)
    with pytest.raises(ValueError, match=r"align_steps must be below optim\.steps, 100, got 100"):
        settings(bootstrapping={**BOOTSTRAPPING, "align_steps": 100})
    with pytest.raises(ValueError, match="<ImageHere>, <ReportHere> once each"):
        BllmWriter(replace(settings().network, refine_prompt="<ImageHere>"), tiny.words())


def test_sizes_at_the_paper(tmp_path):
    tiny_network = settings().network
    published = BllmNetwork(
        {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
         "image_size": 224, "patch_size": 14},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
         "cross_attention_frequency": 2}, 32,
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
        None, tiny_network.coarse_prompt, tiny_network.refine_prompt, tiny_network.coarse, tiny_network.answer,
    )  # fmt: skip
    words = tiny.published_words(tmp_path, "llama", 32000)
    with torch.device("meta"):
        net = BllmWriter(published, words).network
    assert round(tiny.millions(net) / 1000, 2) == 7.83
    assert round(tiny.millions(net.vision_model)) == 986 and round(tiny.millions(net.qformer)) == 105
    assert round(tiny.millions(net.language_projection), 2) == 3.15
