"""Picture encoder and queries learn which text is whose, and nothing else of their writer does."""

from dataclasses import replace

import pytest
import tiny_language_writers as tiny
import torch
from safetensors.torch import load_file
from tiny_method_settings import BLIP, BLLM, LLAVA_RAD
from tiny_writers import R2GEN
from tiny_writers import inputs as word_inputs

from medim.baselines import get_method
from medim.baselines.blip import BlipNetwork, BlipWriter
from medim.baselines.bllm import BllmNetwork, BllmWriter
from medim.baselines.contrastive_prior import ContrastedWriter, ContrastTrainee, TextSummary
from medim.baselines.method_settings import read_settings
from medim.baselines.pretraining import Contrast
from medim.baselines.report_writer import WriterBatch
from medim.tower_pretraining import contrastive_nats

SIZES = Contrast(width=16, blocks=2, summary=8)
OPTIM = {**tiny.OPTIM, "steps": 30, "batch_size": 6, "lr": 1e-2, "log_every": 1}
FIRST = {"datasets": sorted(tiny.PAIRS), "contrast": vars(SIZES), "optim": OPTIM}
SHORT = {**tiny.OPTIM, "steps": 2, "lr": 1e-12, "warmup": 0}
ENCODERS = {
    "blip": ({**BLIP, "optim": SHORT}, ("network.vision_model.",)),
    "bllm": (
        {**BLLM, "optim": SHORT, "bootstrapping": {**BLLM["bootstrapping"], "align_steps": 1}},
        ("network.vision_model.", "network.qformer.", "network.query_tokens"),
    ),
    "llava_rad": ({**LLAVA_RAD, "optim": SHORT, "projector_steps": 1}, ("network.model.vision_tower.",)),
}


def blip():
    torch.manual_seed(0)
    return BlipWriter(read_settings(BlipNetwork, BLIP["network"], "network"), tiny.words())


def bllm():
    torch.manual_seed(0)
    return BllmWriter(read_settings(BllmNetwork, BLLM["network"], "network"), tiny.words())


def test_a_text_does_not_depend_on_its_padding():
    torch.manual_seed(0)
    summary = TextSummary(9, SIZES)
    short, there = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool)
    padded = torch.tensor([[3, 4, 5, 0, 0], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    torch.testing.assert_close(summary(padded, mask)[:1], summary(short, there))


def test_datasets_are_contrasted_apart():
    module = ContrastedWriter(blip(), tiny.images(), SIZES)
    batch = WriterBatch(tiny.images(), tuple(tiny.TEXTS))
    loss, logged = ContrastTrainee(module, 2).loss("contrast", batch, 0, torch.Generator())
    whole = module.similarities(batch.images, batch.texts)["patches"]
    torch.testing.assert_close(loss, (contrastive_nats(whole[:3, :3]) + contrastive_nats(whole[3:, 3:])) / 2)
    assert set(logged) == {"own_report_nearest"} and whole.shape == (6, 6)


def test_a_quarter_tells_left_from_right():
    module = ContrastedWriter(blip(), tiny.images(), SIZES)
    mirrored = tiny.images().flip(3)
    one, other = (module.similarities(images, tiny.TEXTS)["patches"] for images in (tiny.images(), mirrored))
    assert not torch.allclose(one, other)


def test_queries_are_what_the_language_model_is_given():
    writer, images = bllm().eval(), tiny.images()
    seen = writer.contrasted(images)
    torch.testing.assert_close(writer.network.language_projection(seen.queries), writer.pictures(images))
    torch.testing.assert_close(seen.patches, writer.patches(images))


def test_queries_are_contrasted_beside_the_patches_and_leave_the_encoder_alone():
    module = ContrastedWriter(bllm(), tiny.images(), SIZES)
    batch = WriterBatch(tiny.images(), tuple(tiny.TEXTS))
    loss, logged = ContrastTrainee(module, 2).loss("contrast", batch, 0, torch.Generator())
    whole = module.similarities(batch.images, batch.texts)
    parts = [contrastive_nats(one[rows, rows]) / 2 for one in whole.values() for rows in (slice(3), slice(3, 6))]
    assert set(whole) == {"patches", "queries"} and set(logged) == {"own_report_nearest", "queries/own_report_nearest"}
    torch.testing.assert_close(loss, torch.stack(parts).sum())
    contrastive_nats(whole["queries"]).backward()
    moved = {name for name, value in module.writer.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved and all(name.startswith(("network.qformer.", "network.query_tokens")) for name in moved)


def test_what_a_contrastive_prior_has_not_trained_may_not_stand_still(tmp_path):
    settings = ENCODERS["bllm"][0]
    first = {**FIRST, "optim": {**OPTIM, "steps": 1}}
    for frozen, right in ((["vision", "qformer"], True), (["vision", "language"], False)):
        given = tiny.inputs(tmp_path / frozen[1], {**settings, "frozen": frozen, "pretraining": first})
        if right:
            get_method("bllm").train(given)
        else:
            with pytest.raises(ValueError, match="frozen holds 'language', whose weights are random"):
                get_method("bllm").train(given)


@pytest.mark.parametrize("method", ["bllm", "llava_rad"])
def test_what_a_contrastive_prior_has_not_trained_differs_from_seed_to_seed(tmp_path, method):
    settings, trained_parts = ENCODERS[method]
    given = tiny.inputs(tmp_path, {**settings, "pretraining": {**FIRST, "optim": {**OPTIM, "steps": 1}}})
    get_method(method).train(given)
    prior = given.out / "prior"
    later = [replace(given, seed=s, work=tmp_path / f"w{s}", out=tmp_path / f"o{s}", prior=prior) for s in (1, 2)]
    for one in later:
        get_method(method).train(one)
    first, one, two = (load_file(f / "model.safetensors") for f in (prior, *(inputs.out for inputs in later)))
    weights = [name for name in first if first[name].ndim > 1]
    for name in weights:
        same = [torch.allclose(first[name], other[name], rtol=0, atol=1e-8) for other in (one, two)]
        assert same == ([True] * 2 if name.startswith(trained_parts) else [False] * 2), name
    assert not any(
        torch.allclose(one[n], two[n], rtol=0, atol=1e-4) for n in weights if not n.startswith(trained_parts)
    )


@pytest.mark.parametrize("method", ENCODERS)
def test_the_own_text_is_found_and_only_the_encoder_has_learned(tmp_path, method):
    settings, trained_parts = ENCODERS[method]
    curves: dict[str, list[float]] = {}

    def log(_step, values):
        for name, value in values.items():
            curves.setdefault(name, []).append(value)

    given = tiny.inputs(tmp_path, {**settings, "pretraining": FIRST}, log)
    trained = get_method(method).train(given)
    assert trained.pretraining_examples == 30 * 6
    assert curves["pretraining/val/cxr/own_report_nearest"][-1] == 1.0 > curves["pretraining/val/cxr/chance"][0]
    still = {**FIRST, "optim": {**OPTIM, "steps": 1, "lr": 1e-12, "warmup": 0}}
    apart = replace(given, work=tmp_path / "w", out=tmp_path / "o", settings={**settings, "pretraining": still})
    get_method(method).train(apart)
    learned, new = (load_file(one.out / "prior/model.safetensors") for one in (given, apart))
    moved = {name for name in learned if not torch.allclose(learned[name], new[name], rtol=0, atol=1e-6)}
    assert all(name.startswith(trained_parts) for name in moved)
    assert all(any(name.startswith(part) for name in moved) for part in trained_parts)


def test_of_r2gen_the_residual_network_is_kept(tmp_path):
    (tmp_path / "r").mkdir()
    first = {**FIRST, "datasets": ["d"], "optim": {**OPTIM, "steps": 8}}
    given, logs = word_inputs(tmp_path / "r", R2GEN, optim={**SHORT, "batch_size": 6}, pretraining=first)
    get_method("r2gen").train(given)
    prior, result = (load_file(folder / "model.safetensors") for folder in (given.out / "prior", given.out))
    kept = [name for name in prior if name.startswith("extractor.") and name.endswith(".weight")]
    assert kept and all(torch.allclose(prior[name], result[name], rtol=0, atol=1e-8) for name in kept)
    assert any("pretraining/val/d/own_report_nearest" in values for _, values in logs)


def test_a_batch_must_hold_two_pairs_of_each_dataset(tmp_path):
    first = {**FIRST, "optim": {**OPTIM, "batch_size": 3}}
    with pytest.raises(ValueError, match=r"as many pairs of each of the 2 datasets, two at least, got 3"):
        get_method("blip").train(tiny.inputs(tmp_path, {**ENCODERS["blip"][0], "pretraining": first}))


def test_sizes_are_positive():
    with pytest.raises(ValueError, match=r"contrast.blocks must be at least 1, got 0"):
        Contrast(width=4, blocks=0, summary=4)
