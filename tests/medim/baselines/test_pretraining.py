"""Writers that are trained on captioned pictures first: what is kept of it, and that nothing else differs."""

import json
from dataclasses import replace

import pytest
import tiny_language_writers as tiny
import torch
from safetensors.torch import load_file
from tiny_method_settings import BLIP, BLLM, BOOTSTRAPPING, LLAVA_RAD
from tiny_writers import CMN, R2GEN
from tiny_writers import inputs as word_inputs

from medim.baselines import get_method
from medim.baselines.base import Trained
from medim.baselines.bllm import BllmSettings, build_bllm, first_bllm
from medim.baselines.lora import LoraLinear
from medim.baselines.method_settings import read_settings
from medim.baselines.pretraining import check_one_start, log_apart
from medim.baselines.published_words import PublishedWords, WordSettings
from medim.baselines.report_words import ReportWords
from medim.baselines.writer_prior import read_prior
from medim.system_loading import load_system

FIRST = {
    "datasets": ["drawings"],
    "contrast": None,
    "optim": {**tiny.OPTIM, "steps": 3, "lr": 1e-2, "batch_size": 3, "log_every": 1},
}
STANDING = {**tiny.OPTIM, "steps": 2, "lr": 1e-12, "warmup": 0}  # what is trained so stays where it began
WHOLE = {
    "blip": {**BLIP, "optim": STANDING},
    "bllm": {**BLLM, "optim": STANDING, "bootstrapping": {**BOOTSTRAPPING, "align_steps": 1}},
    "llava_rad": {**LLAVA_RAD, "optim": STANDING, "projector_steps": 1},
}
CAPTIONS = [one.full_text for one in tiny.DRAWINGS]
LORA = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["*.q_proj"]}
EXTRACTORS = pytest.mark.parametrize(("method", "sizes"), [("r2gen", R2GEN), ("r2gen_cmn", CMN)])


def train(folder, method, settings, **more):
    """(what it took, names of its scalars, weights of the prior if there is one, those of the result)."""
    names: set[str] = set()
    folder.mkdir(exist_ok=True)
    given = tiny.inputs(folder, settings, lambda _step, values: names.update(values), **more)
    trained = get_method(method).train(given)
    prior = folder / "out/prior/model.safetensors"
    return trained, names, load_file(prior) if prior.is_file() else None, load_file(folder / "out/model.safetensors")


def words_of(folder):
    return json.loads((folder / "config.json").read_text())["writer"]["words"]


@pytest.mark.parametrize("method", WHOLE)
def test_words_and_all_weights_are_kept(tmp_path, method):
    settings = {**WHOLE[method], "pretraining": FIRST}
    trained, names, prior, result = train(tmp_path / "whole", method, settings)
    assert {"pretraining/writer/loss", "pretraining/val/drawings/nats_per_token", "val/cxr/nats_per_token"} <= names
    assert "val/drawings/nats_per_token" not in names
    assert trained == Trained(sum(value.numel() for value in result.values()), 2 * 4, 3 * 3)
    assert prior.keys() == result.keys()
    for name, value in prior.items():
        torch.testing.assert_close(result[name], value, rtol=0, atol=1e-8, msg=name)
    texts = [*tiny.TEXTS[:3], *CAPTIONS, *tiny.TEXTS[3:]]  # by the names of the datasets
    both = PublishedWords.build(WordSettings(**tiny.WORDS), texts)
    assert words_of(tmp_path / "whole/out") == words_of(tmp_path / "whole/out/prior") == both.config()

    later, names, own, again = train(tmp_path / "later", method, settings, prior=tmp_path / "whole/out/prior")
    assert own is None and not [name for name in names if name.startswith("pretraining/")]
    assert later == trained and all(torch.equal(value, again[name]) for name, value in result.items())
    assert words_of(tmp_path / "later/out") == both.config()

    alone, _, none, fresh = train(tmp_path / "alone", method, WHOLE[method])
    assert none is None and alone.pretraining_examples == 0 and words_of(tmp_path / "alone/out") != both.config()
    same = [name for name, value in fresh.items() if value.shape == prior[name].shape]
    assert any(float((fresh[name] - prior[name]).abs().max()) > 1e-3 for name in same)
    assert load_system(tmp_path / "whole/out/prior").generate("image_to_report", "drawings", tiny.DRAWINGS, range(3))


@EXTRACTORS
def test_of_an_encoder_decoder_the_extractor_is_kept_alone(tmp_path, method, sizes):
    optim = {**STANDING, "batch_size": 6}
    given, _ = word_inputs(tmp_path, sizes, optim=optim, pretraining=FIRST)
    drawn = tiny.inputs(tmp_path, {}).pairs["drawings"]
    given = replace(given, pairs={**given.pairs, "drawings": drawn})
    trained = get_method(method).train(given)
    folders = given.out / "prior", given.out
    prior, result = (load_file(folder / "model.safetensors") for folder in folders)
    learned = [name for name in prior if name.startswith("extractor.") and name.endswith((".weight", ".bias"))]
    assert learned and trained.pretraining_examples == 9 and trained.examples == 12
    for name in learned:
        torch.testing.assert_close(result[name], prior[name], rtol=0, atol=1e-8, msg=name)
    assert words_of(folders[0]) == ReportWords.build(CAPTIONS, 1, "plain").config()
    assert "disc" not in words_of(folders[1])["words"] and "edema" in words_of(folders[1])["words"]

    apart = replace(given, work=tmp_path / "work2", out=tmp_path / "out2")
    later = get_method(method).train(replace(apart, prior=folders[0]))
    assert later == trained and not (apart.out / "prior").exists()
    assert (apart.out / "model.safetensors").read_bytes() == (given.out / "model.safetensors").read_bytes()

    unaware = {**given.settings, "pretraining": None}
    fresh = replace(given, work=tmp_path / "work3", out=tmp_path / "out3", settings=unaware)
    get_method(method).train(fresh)
    plain = load_file(fresh.out / "model.safetensors")
    network = [name for name in result if name.startswith("network.") and not name.endswith("num_batches_tracked")]
    assert all(torch.allclose(plain[name], result[name], rtol=0, atol=1e-8) for name in network)
    assert not all(torch.allclose(plain[name], result[name], rtol=0, atol=1e-4) for name in learned)


@EXTRACTORS
def test_an_extractor_that_stands_still_keeps_weights_and_statistics_of_the_prior(tmp_path, method, sizes):
    optim = {**tiny.OPTIM, "steps": 3, "batch_size": 4, "lr": 1e-2}
    results = {}
    for name, frozen in (("held", ["extractor"]), ("free", [])):
        (tmp_path / name).mkdir()
        given, _ = word_inputs(tmp_path / name, sizes, optim=optim, pretraining=FIRST, frozen=frozen)
        given = replace(given, pairs={**given.pairs, "drawings": tiny.inputs(tmp_path / name, {}).pairs["drawings"]})
        get_method(method).train(given)
        prior, result = (load_file(folder / "model.safetensors") for folder in (given.out / "prior", given.out))
        seen = [key for key in result if key.startswith("extractor.")]
        assert any("running_mean" in key for key in seen)
        results[name] = [torch.equal(prior[key], result[key]) for key in seen if "num_batches" not in key], result
    assert all(results["held"][0]) and not any(results["free"][0])
    moved = [key for key in results["held"][1] if key.startswith("network.") and key.endswith("query.weight")]
    assert moved and not any(torch.equal(results["held"][1][key], results["free"][1][key]) for key in moved)


def test_random_weights_do_not_stand_still(tmp_path):
    given, _ = word_inputs(tmp_path, R2GEN, frozen=["extractor"])
    with pytest.raises(ValueError, match="frozen holds 'extractor', whose weights are random"):
        get_method("r2gen").train(given)
    with pytest.raises(ValueError, match="frozen holds 'decoder', parts are extractor"):
        get_method("r2gen").train(replace(given, settings={**given.settings, "frozen": ["decoder"]}))
    blip = tiny.inputs(tmp_path, {**WHOLE["blip"], "frozen": ["vision"]})
    with pytest.raises(ValueError, match="frozen holds 'vision', whose weights are random"):
        get_method("blip").train(blip)


def test_blips_vision_stands_still_behind_its_pretraining(tmp_path):
    optim = {**tiny.OPTIM, "steps": 2, "lr": 1e-2}
    settings = {**WHOLE["blip"], "optim": optim, "pretraining": FIRST, "frozen": ["vision"]}
    _, _, prior, result = train(tmp_path / "blip", "blip", settings)
    seen = {name: torch.equal(prior[name], value) for name, value in result.items()}
    held = {name: same for name, same in seen.items() if name.startswith("network.vision_model.")}
    assert len(held) > 10 and all(held.values())
    assert not any(same for name, same in seen.items() if name.endswith("query.weight") and name not in held)


def test_a_killed_training_ends_with_the_same_bytes_in_either_phase(tmp_path):
    optim = {**tiny.OPTIM, "steps": 4, "checkpoint_every": 2, "log_every": 1, "ema": 0.9}

    def given(name, on_log=lambda *_: None):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        more, _ = word_inputs(
            folder, R2GEN, optim=optim, pretraining={"datasets": ["drawings"], "contrast": None, "optim": optim}
        )
        return replace(more, pairs={**more.pairs, "drawings": tiny.inputs(folder, {}).pairs["drawings"]}, on_log=on_log)

    def files(name):
        out = tmp_path / name / "out"
        return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    method = get_method("r2gen")
    method.train(given("whole"))
    assert len(files("whole")) == 4
    for phase in ("pretraining/writer/loss", "writer/loss"):
        name = phase.replace("/", "-")

        def kill(step, values, phase=phase):
            if phase in values and step == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            method.train(given(name, kill))
        assert (tmp_path / name / "out/prior/config.json").is_file() == (phase == "writer/loss")
        method.train(given(name))
        assert files(name) == files("whole")


def test_the_prior_counts_as_weights_that_may_stand_still(tmp_path):
    network = {**BLLM["network"], "lora": LORA}
    settings = {
        **WHOLE["bllm"], "network": network, "frozen": ["vision", "qformer"], "pretraining": FIRST,
        "optim": {**STANDING, "lr": 1e-2},
    }  # fmt: skip
    _, _, prior, result = train(tmp_path / "bllm", "bllm", settings)
    assert not [name for name in prior if name.endswith((".up", ".down"))]
    ups = [name for name in result if name.endswith(".up")]
    assert len(ups) == 2 and all(bool(result[name].abs().sum() > 0) for name in ups)
    held = [name for name in prior if name in result and "language_projection" not in name]
    assert len(held) > 20 and all(torch.equal(prior[name], result[name]) for name in held)
    moved = "network.language_projection.weight"
    assert not torch.equal(prior[moved], result[moved])
    found = build_bllm(
        read_settings(BllmSettings, settings, "bllm"), None, tiny.TEXTS,
        read_prior(tmp_path / "bllm/out/prior", "medim.baselines.bllm"),
    )  # fmt: skip
    assert sum(isinstance(part, LoraLinear) for part in found.modules()) == 2
    assert not found.train().network.vision_model.training


def test_what_pretrains_bllm_is_stage_ones_loss_at_every_step():
    settings = read_settings(BllmSettings, {**WHOLE["bllm"], "frozen": ["vision"]}, "bllm")
    net, pictures = first_bllm(settings, tiny.TEXTS).eval(), tiny.images()
    plain = net.decoder.nats(net.prompts(pictures), net.words.encode(tiny.TEXTS)).mean()
    for step in (0, 1, 99):
        net.begin_step(step)
        torch.testing.assert_close(net.loss(pictures, tiny.TEXTS, torch.Generator()), plain)
    assert all(value.requires_grad for value in net.parameters())


@pytest.mark.parametrize("method", WHOLE)
def test_first_weights_come_from_one_place(tmp_path, method):
    starts = {"blip": "there.pth", "bllm": {"blip2": None, "language": "there"},
              "llava_rad": {"vision": "there.pt", "language": None, "release": None}}  # fmt: skip
    place = {"blip": "start", "bllm": r"start\.language", "llava_rad": r"start\.vision"}[method]
    settings = {**WHOLE[method], "start": starts[method]}
    with pytest.raises(ValueError, match=rf"params.yaml.*pretraining and {place} both.*{place}: null"):
        train(tmp_path, method, {**settings, "pretraining": FIRST})
    with pytest.raises(ValueError, match=rf"pretraining and {place} both"):
        train(tmp_path, method, settings, prior=tmp_path)


def test_a_released_residual_network_is_a_prior_already(tmp_path):
    given, _ = word_inputs(tmp_path, R2GEN, start="resnet", pretraining=FIRST)
    with pytest.raises(ValueError, match=r"settings\.r2gen: pretraining and start both .* start: null"):
        get_method("r2gen").train(given)
    check_one_start(False, {"start": "there"})
    check_one_start(True, {"start": None})


def test_what_is_missing_is_named(tmp_path):
    given = tiny.inputs(tmp_path, {**WHOLE["blip"], "pretraining": {**FIRST, "datasets": ["marks"]}})
    with pytest.raises(ValueError, match=r"'marks', which has no training pairs: .*prepare_data"):
        get_method("blip").train(given)
    with pytest.raises(FileNotFoundError, match=r"models/blip/prior/config\.json is missing: .*train_baseline@blip"):
        get_method("blip").train(replace(given, prior=tmp_path / "models/blip/prior"))


def test_curves_of_the_pretraining_stand_apart():
    lines = []
    log_apart(lambda step, values: lines.append((step, values)))(3, {"val/a": 1.0})
    assert lines == [(3, {"pretraining/val/a": 1.0})]
