"""UniDisc: its published objective and sampler, a training that learns and resumes, a folder that answers all tasks."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_medim as tiny
import torch
from torch import Tensor

from medim.backbones.unidisc import UniDiscSettings
from medim.baselines import get_method
from medim.baselines.base import TrainInputs
from medim.baselines.method_settings import read_settings
from medim.baselines.unidisc import PLACE, UniDisc, UniDiscTraining, load_system
from medim.diffusion.absorbing import cap_weight
from medim.diffusion.counts import token_counts
from medim.diffusion.sampler import official_settings
from medim.diffusion.states import state_maps
from medim.medim_training import Tokens
from medim.model import LossSettings, MeDiM
from medim.pairs import Pair, encode_png
from medim.system_loading import load_system as load_any
from medim.systems import TASKS, ReportLikelihood
from medim.tokenizers.vqgan import save_vqgan
from pipeline.params import changed, read_section
from pipeline.params_file import parse_yaml
from pipeline.profile import profiles, render

ROOT = Path(__file__).parents[3]
BACKBONE = UniDiscSettings(
    hidden_size=32, blocks=2, heads=2, mlp_ratio=2, dropout=0.0, positions="grid", time_conditioning=False,
    cond_width=8, code_rows="drawn", zero_head=True, gradient_checkpointing=False,
)  # fmt: skip
ONE_WHOLE = 0.15 / 2 * (1 - 0.15 / 2)  # published: each modality with .15 / 2, neither where both would be
PUBLISHED = LossSettings(
    states={"joint": 1 - 2 * ONE_WHOLE, "report_given_picture": ONE_WHOLE, "picture_given_report": ONE_WHOLE},
    prompt_keep=0.0, length_known=0.0, cut=0.0, condition_dropout=0.0,
    all_masked={"report_given_picture": 1.0, "picture_given_report": 1.0}, sampling_eps=1e-3, weighting="softmin_cap",
    cap=5.0, text_weight=1.0, image_weight=0.6, complementary=False,
)  # fmt: skip


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unidisc(**changes: Any) -> UniDisc:
    torch.manual_seed(0)
    return UniDisc(tiny.tokenizer(), tiny.CODES, tiny.LAYOUT, replace(BACKBONE, **changes), "log_linear")


def in_profile(name: str) -> Mapping[str, Any] | None:
    params = parse_yaml(render(name, ROOT / "profiles"), name)
    return params["train_baseline"]["settings"].get("unidisc")


@pytest.mark.parametrize("name", profiles(ROOT / "profiles"))
def test_every_profile_has_the_published_objective_if_any(name):
    values = in_profile(name)
    if values is not None:
        assert read_settings(UniDiscTraining, values, PLACE).loss == PUBLISHED


def test_its_sampler_is_the_published_one_whatever_the_task(tmp_path):
    from stages.generate import Section

    (tmp_path / "params.yaml").write_text(render("phantom", ROOT / "profiles"))
    section = read_section("generate", Section, tmp_path / "params.yaml")
    own = section.of_model("unidisc")
    for task in TASKS:
        sampler = changed(own.sampler, own.sampler_of.get(task, {}), task)
        assert sampler == official_settings(own.sampler.text_steps)
    assert 32 <= own.sampler.text_steps <= 128
    assert section.of_model("medim") == replace(section, sampler_of_model={})


def noisy(model: MeDiM, num: int, settings: LossSettings = PUBLISHED) -> Any:
    """What a model makes of `num` pairs: their states and the masked batch."""
    batch = tiny.tokens(num).batch(np.arange(num))
    x0 = model.sequence(batch.text, batch.image)
    state = torch.zeros(num, dtype=torch.int64)
    state[::4], state[1::4] = 1, 2  # a quarter of each conditional state
    length = torch.full((num,), 20)
    maps = state_maps(state, batch.prompt_tokens, length, model.space, 0.0, 0.0, 0.0, 0.0, generator())
    return state, model.noisy(x0, maps, settings, generator())


def test_weights_are_those_of_the_public_code():
    """dσ / (e^σ - 1 + 1 / γ) with σ = -log(1 - (1 - ε) t), ε = .001, γ = 5; ours leaves ε out."""
    _, found = noisy(unidisc(), 400)
    t = found.t.double()
    sigma, rate = -torch.log1p(-0.999 * t), 0.999 / (1 - 0.999 * t)
    published = rate / (torch.expm1(sigma) + 1 / 5)
    torch.testing.assert_close(cap_weight(found.weight, "softmin_cap", 5.0), published, rtol=1.1e-3, atol=0)


def test_a_whole_modality_is_masked_while_its_weight_is_that_of_any_time():
    model = unidisc()
    state, found = noisy(model, 2000)
    layout = model.layout
    report, picture = found.xt[:, layout.text], found.xt[:, layout.image]
    mask = model.vocab.mask_id
    assert bool((report[state == 1] == mask).all()) and not bool((picture[state == 1] == mask).any())
    assert bool((picture[state == 2] == mask).all()) and not bool((report[state == 2] == mask).any())
    assert torch.equal(found.masked, found.xt == mask)
    assert bool((found.chance[state != 0] == 1).all())
    weights = cap_weight(found.weight[state != 0], "softmin_cap", 5.0)
    assert float(weights.mean()) == pytest.approx(math.log(5) / 0.8, rel=0.03)  # the integral of 1 / (t + (1 - t) / 5)
    # masks follow the time where the state is joint, and have nothing to do with the weight elsewhere
    joint = (picture[state == 0] == mask).double().mean(1)
    assert float((joint - found.t[state == 0]).abs().mean()) < 0.15


def test_whole_modalities_are_masked_as_often_as_published():
    model, seen = unidisc(), []
    model.backbone.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    num = 1000
    model.loss(tiny.tokens(num).batch(np.arange(num)), PUBLISHED, generator())
    masked = torch.cat(seen) == model.vocab.mask_id
    text, image = masked[:, model.layout.text], masked[:, model.layout.image]
    for whole, clean in ((text, image), (image, text)):
        share = float((whole.all(1) & ~clean.any(1)).double().mean())
        assert share == pytest.approx(ONE_WHOLE, abs=2e-3)


def test_without_whole_modalities_masks_are_medim_s():
    model, plain = unidisc(), replace(PUBLISHED, all_masked={})
    batch = tiny.tokens(6).batch(np.arange(6))
    x0 = model.sequence(batch.text, batch.image)
    maps = state_maps(torch.arange(6) % 3, batch.prompt_tokens, batch.prompt_tokens, model.space, 0.0, 0.0, 0.0, 0.0,
                      generator())  # fmt: skip
    one, other = model.noisy(x0, maps, plain, generator()), MeDiM.noisy(model, x0, maps, plain, generator())
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine, theirs)


# Training, folder, answers


def write_tokens(path: Path, tokens: Tokens) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = {name: pa.array(getattr(tokens, name).tolist(), pa.list_(pa.int32())) for name in ("text", "image")}
    numbers = {name: pa.array(getattr(tokens, name), pa.int32()) for name in ("prompt_tokens", "text_tokens")}
    pq.write_table(pa.table({"pair_id": list(tokens.pair_ids), **lists, **numbers}), path)


def inputs(folder: Path, out: str, log: Any = lambda *_: None, **changes: Any) -> TrainInputs:
    """Token files of two datasets, tokenizer and VQGAN in a folder; a training of a few steps on "a"."""
    files: dict[str, dict[str, Path]] = {"a": {}, "drawings": {}}
    for seed, name in enumerate(files):
        for split, num in (("train", 4), ("val", 2)):
            files[name][split] = folder / "tokens" / name / f"{split}.parquet"
            write_tokens(files[name][split], tiny.tokens(num, seed))
    tiny.tokenizer().save(folder / "tokenizer")
    save_vqgan(tiny.vqgan(), folder / "vqgan")
    settings = {
        "backbone": BACKBONE.to_dict(), "noise": "log_linear", "loss": asdict(PUBLISHED), "val_pairs": 2,
        "pretraining": None, "optim": asdict(tiny.OPTIM),
    } | changes  # fmt: skip
    return TrainInputs(
        {}, ("a",), settings, 7, folder / f"work-{out}", folder / out, log, tokens=files,
        tokenizer=folder / "tokenizer", vqgan=folder / "vqgan",
    )  # fmt: skip


def test_it_overfits_a_handful_of_pairs_and_answers_every_task(tmp_path):
    curves: list[Mapping[str, float]] = []
    optim = asdict(replace(tiny.OPTIM, steps=200, lr=1e-2, accumulate=1, batch_size=8, ema=0.0, log_every=200,
                           checkpoint_every=200))  # fmt: skip
    backbone = replace(BACKBONE, zero_head=False)  # as at the smallest published size; learns sooner
    states = {"joint": 0.4, "report_given_picture": 0.3, "picture_given_report": 0.3}
    given = inputs(
        tmp_path, "unidisc", lambda _step, values: curves.append(values), optim=optim,
        loss=asdict(replace(PUBLISHED, states=states)), backbone=backbone.to_dict(),
    )  # fmt: skip
    get_method("unidisc").train(given)
    assert any("unidisc/loss" in values for values in curves)
    assert any("val/a/image_to_report" in values for values in curves)
    config = json.loads((tmp_path / "unidisc/config.json").read_text())
    assert config["system"] == "medim.baselines.unidisc" and config["backbone"] == backbone.to_dict()
    sampler = replace(official_settings(20), text_guidance=0.0, image_guidance=0.0, text_temperature=0.0,
                      image_temperature=0.0, choice_temperature=0.0, precision="fp32")  # fmt: skip
    system = load_any(tmp_path / "unidisc", vqgan=tmp_path / "vqgan", sampler=sampler, device=torch.device("cpu"))
    tokens = tiny.tokens(4)
    codes = torch.from_numpy(tokens.image.astype(np.int64))
    texts = [system.model.tokenizer.decode(row) for row in tokens.text.tolist()]
    assert system.image_to_report(codes, [1, 2, 3, 4]).texts == texts
    assert float((system.report_to_image(texts, [1, 2, 3, 4]).codes == codes).double().mean()) > 0.8  # chance: 1 / 24
    picture = encode_png(np.zeros((24, 24, 3), np.uint8))
    pairs = [Pair(f"p{i}", "s", "x", "a", "drawn", picture, "histology", "no mitoses are seen.") for i in range(2)]
    for task in TASKS:
        found = system.generate(task, "a", pairs, [1, 2])
        assert [sample.row for sample in found] == ["UniDisc"] * 2
        unknown = {"report_to_image": 9, "image_to_report": 20, "joint": 29}[task]
        assert [sample.evaluations for sample in found] == [len(token_counts("arccos", unknown, 20, 1.0))] * 2
    assert isinstance(system, ReportLikelihood) and system.row == "UniDisc"
    own, other = system.report_log_p([texts[0], texts[0]], None, [5, 5], 4, 8)
    assert own == other < 0


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_killed_training_ends_with_the_same_bytes_pretraining_included(tmp_path):
    optim = asdict(replace(tiny.OPTIM, steps=4, checkpoint_every=2))
    before = {"datasets": ["drawings"], "optim": optim}
    names: set[str] = set()
    train = get_method("unidisc").train
    train(inputs(tmp_path, "whole", lambda _step, values: names.update(values), optim=optim, pretraining=before))
    assert {"pretraining/unidisc/loss", "pretraining/val/drawings/joint", "unidisc/loss", "val/a/joint"} <= names
    for number, phase in enumerate(("pretraining/unidisc/loss", "unidisc/loss")):

        def kill(step: int, values: Mapping[str, float], phase: str = phase) -> None:
            if phase in values and step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(inputs(tmp_path, f"part{number}", kill, optim=optim, pretraining=before))
        train(inputs(tmp_path, f"part{number}", optim=optim, pretraining=before))
        assert weights(tmp_path / f"part{number}") == weights(tmp_path / "whole")
    train(inputs(tmp_path, "alone", optim=optim))
    assert weights(tmp_path / "alone") != weights(tmp_path / "whole")


def test_a_saved_folder_is_the_same_model(tmp_path):
    model = unidisc(zero_head=False, time_conditioning=True).eval()
    model.save(tmp_path)
    again = UniDisc.load(tmp_path)
    x = model.sequence(None, tiny.tokens().batch(np.arange(3)).image)
    wanted, t = x == model.vocab.mask_id, torch.rand(3, generator=generator())

    def logits(one: UniDisc) -> Tensor:
        return one(x, t, wanted).text.detach()

    assert torch.equal(logits(model), logits(again))
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: run `dvc repro train_baseline@unidisc`"):
        UniDisc.load(tmp_path / "none")


def test_what_is_missing_is_named(tmp_path):
    given, train = inputs(tmp_path, "out"), get_method("unidisc").train
    with pytest.raises(ValueError, match=r"nothing reads \['optimm'\] \(did you mean optim"):
        train(replace(given, settings={**given.settings, "optimm": 1}))
    with pytest.raises(ValueError, match="noise schedule 'pink'"):
        train(replace(given, settings={**given.settings, "noise": "pink"}))
    with pytest.raises(ValueError, match=r"'b', which has no tokens .there are a, drawings.: add it to params.yaml"):
        train(replace(given, datasets=("a", "b")))
    with pytest.raises(ValueError, match=r"needs TrainInputs.tokenizer and .vqgan"):
        train(replace(given, vqgan=None))


def test_candidates_need_towers_which_it_has_not(tmp_path):
    unidisc().save(tmp_path / "model")
    save_vqgan(tiny.vqgan(), tmp_path / "vqgan")
    sampler = replace(official_settings(3), candidates=2)
    with pytest.raises(ValueError, match="this one has none: set the first two to 1"):
        load_system(tmp_path / "model", vqgan=tmp_path / "vqgan", sampler=sampler, device=torch.device("cpu"))
