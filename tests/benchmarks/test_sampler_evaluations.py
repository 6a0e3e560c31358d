"""Measuring: a model that is certain gives numbers that can be known; what is measured is kept; there is a plot."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import certain_reader, oracle, tiny

from benchmarks.sampler_evaluations import check_inputs, run, wanted_points
from benchmarks.sampler_grid import METRICS, QUICK
from benchmarks.sampler_measure import Record, Wanted, ground_of, measure, measure_all, missing, ratios
from medim.data.splits import drawn_pairs
from medim.metrics.finding_reader import save_finding_reader
from medim.pairs import Pair, encode_png, write_pairs
from medim.questions import Questions
from medim.tokenizers.vqgan import save_vqgan
from pipeline.paths import World

REPORT = "The heart is enlarged."
SAMPLERS = {"image_to_report": tiny.SAMPLER, "report_to_image": replace(tiny.SAMPLER, image_guidance=0.5)}


def pair(number: int, findings: dict[str, str]) -> Pair:
    picture = np.full((24, 24, 3), 10 * number, np.uint8)
    return Pair(f"p-{number}", f"s-{number}", f"q-{number}", "phantom_cxr", "test", encode_png(picture), "chest x-ray",
                REPORT, json.dumps(findings))  # fmt: skip


def asked(text: str = f"chest x-ray: {REPORT}", **settings) -> Questions:
    return Questions(oracle(text), tiny.vqgan(), replace(tiny.SAMPLER, **settings))


def measured(questions: Questions, task: str, pairs: list[Pair], reader=None) -> dict:
    ground = ground_of("phantom_cxr", pairs, questions)
    return measure(questions, task, ground, reader or certain_reader(), seed=0, chunk=3, resamples=10)


def test_a_report_that_is_always_the_same_has_the_f1_of_the_truth():
    both = [pair(k, {"cardiomegaly": "present"}) for k in range(4)]
    found = measured(asked(), "image_to_report", both)
    assert found["finding_f1"]["value"] == found["sentence_validity"]["value"] == 1
    assert found["n"] == found["finding_f1"]["n"] == 4 and found["evaluations"] == 4
    half = both[:2] + [pair(k, {}) for k in (2, 3)]
    assert measured(asked(), "image_to_report", half)["finding_f1"]["value"] == pytest.approx(2 / 3)
    assert measured(asked("chest x-ray: heart heart"), "image_to_report", both)["sentence_validity"]["value"] == 0


def test_a_picture_is_held_against_the_given_report():
    pairs = [pair(k, {"cardiomegaly": "present"}) for k in range(4)]
    found = measured(asked(), "report_to_image", pairs, certain_reader("cardiomegaly"))
    assert found["finding_f1"]["value"] == 1 and found["evaluations"] == 3 and "sentence_validity" not in found
    assert measured(asked(), "report_to_image", pairs)["finding_f1"]["value"] == 0


def test_evaluations_are_counted_not_assumed():
    pairs = [pair(0, {"cardiomegaly": "present"})]
    certain = {"text_commit": "threshold", "text_commit_level": 0.9}
    assert measured(asked(**certain), "image_to_report", pairs)["evaluations"] == 1
    assert measured(asked(text_guidance=1.0), "image_to_report", pairs)["evaluations"] == 8
    assert measured(asked(image_steps=9), "report_to_image", pairs)["evaluations"] == 9


def test_ground_needs_pairs_and_known_findings():
    with pytest.raises(ValueError, match=r"phantom_cxr has no validation pairs: raise prepare_data"):
        ground_of("phantom_cxr", [], asked())
    with pytest.raises(ValueError, match="findings of mine are not known"):
        ground_of("mine", [pair(0, {})], asked())


def fields(value: float, evaluations: float, seconds: float) -> dict:
    return {"finding_f1": {"value": value}, "evaluations": evaluations, "seconds": seconds, "n": 1}


def test_points_are_kept_and_seconds_compared_within_a_run(tmp_path):
    base = tiny.SAMPLER
    wanted = [
        Wanted("a/t/default", "a", "t", base), Wanted("a/t/x", "a", "t", replace(base, text_steps=2)),
        Wanted("a/t/x", "a", "t", replace(base, text_steps=2)), Wanted("b/t/default", "b", "t", base),
    ]  # fmt: skip
    path = tmp_path / "r.json"
    record = Record(path, {"pairs": 8})
    assert [one.key for one in missing(wanted, record)] == ["a/t/default", "b/t/default", "a/t/x"]
    first = iter([fields(0.5, 4, 2.0), fields(0.0, 4, 1.0), fields(0.25, 2, 1.0)])
    measure_all(missing(wanted, record), {"t": base}, record, {}, lambda one: next(first), lambda: record.save({}))
    assert ratios("a/t/x", record) == {"finding_f1": 0.5, "evaluations": 0.5, "seconds": 0.5}
    assert ratios("b/t/default", record)["finding_f1"] is None  # over nothing
    again = Record(path, {"pairs": 8})
    assert not again.differs and missing(wanted, again) == []
    more = [*wanted, Wanted("a/t/y", "a", "t", replace(base, text_steps=1))]
    assert [one.key for one in missing(more, again)] == ["a/t/default", "a/t/y"]
    slow = iter([fields(0.5, 4, 20.0), fields(0.5, 1, 5.0)])
    measure_all(missing(more, again), {"t": base}, again, {}, lambda one: next(slow), lambda: again.save({}))
    assert ratios("a/t/y", again)["seconds"] == 0.25 and ratios("a/t/x", again)["seconds"] == 0.5
    other = Record(path, {"pairs": 9})
    assert other.differs == ["pairs"] and other.points == {}


def test_a_killed_run_keeps_what_it_had(tmp_path):
    wanted = [Wanted("a/t/default", "a", "t", tiny.SAMPLER), Wanted("a/t/x", "a", "t", tiny.SAMPLER)]
    record = Record(tmp_path / "r.json", {})

    def ask(one: Wanted) -> dict:
        if one.key == "a/t/x":
            raise KeyboardInterrupt
        return fields(1.0, 1, 1.0)

    with pytest.raises(KeyboardInterrupt):
        measure_all(missing(wanted, record), {"t": tiny.SAMPLER}, record, {}, ask, lambda: record.save({}))
    assert list(Record(tmp_path / "r.json", {}).points) == ["a/t/default"]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "runs/small")
    torch.manual_seed(0)
    tiny.medim().save(world.model("medim"))
    save_vqgan(tiny.vqgan(), world.model("vqgan"))
    save_finding_reader(certain_reader("edema"), world.model("finding_reader"))
    write_pairs(world.pairs("phantom_cxr", "val"), drawn_pairs("phantom_cxr", "val", 0, 4, 32))
    return world


def resized(world: World) -> None:
    """The tiny VQGAN makes codes of 24 pixels a side."""
    pairs = [pair(k, {"cardiomegaly": "present"}) for k in range(4)]
    write_pairs(world.pairs("phantom_cxr", "val"), pairs)


def test_the_whole_way_from_models_to_plot(world, tmp_path):
    resized(world)
    numbers = {"pairs": 2, "seed": 0, "resamples": 5, "chunk": 2, "threads": 1}
    out = tmp_path / "out"
    text = run(world, "medim", ["phantom_cxr"], SAMPLERS, QUICK, out, numbers)
    page = json.loads((out / "sampler_evaluations.json").read_text())
    points, listed = wanted_points(SAMPLERS, ["phantom_cxr"], QUICK)
    assert set(page["points"]) == {point.key for point in points}
    assert page["evaluations"] == listed["evaluations"] and page["guidance"] and page["temperature"]
    weights = [row["points"] for row in page["guidance"] if row["group"] == "phantom_cxr/report_to_image"]
    assert [len(keys) for keys in weights] == [3]  # 0, the task's own 0.5, and 1
    for key, point in page["points"].items():
        assert set(METRICS[key.split("/")[1]]) < set(point)
        assert point["n"] == 2
    assert all(key in text for key in ("text_order=confidence", "image_guidance=1.0", "phantom_cxr/report_to_image"))
    assert np.asarray(Image.open(out / "sampler_evaluations.png")).std() > 0
    before = {name: (out / name).read_bytes() for name in ("sampler_evaluations.json", "sampler_evaluations.png")}
    assert run(world, "medim", ["phantom_cxr"], SAMPLERS, QUICK, out, numbers) == text
    assert before == {name: (out / name).read_bytes() for name in before}  # nothing was measured again
    other = {**SAMPLERS, "image_to_report": replace(tiny.SAMPLER, text_steps=3)}
    run(world, "medim", ["phantom_cxr"], other, QUICK, out, numbers)
    assert (
        json.loads((out / "sampler_evaluations.json").read_text())["identity"]["sampler"]["image_to_report"][
            "text_steps"
        ]
        == 3
    )


def test_missing_inputs_are_named_with_the_command(world):
    assert set(check_inputs(world, "medim", ["phantom_cxr"])) == {
        "models/medim", "models/vqgan", "models/finding_reader", "pairs/phantom_cxr/val",
    }  # fmt: skip
    with pytest.raises(
        FileNotFoundError, match=r"phantom_pathology/val.parquet is missing: run `dvc repro prepare_data`"
    ):
        check_inputs(world, "medim", ["phantom_cxr", "phantom_pathology"])
    (world.model("vqgan") / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"vqgan/model.safetensors is missing: run `dvc repro train_vqgan`"):
        check_inputs(world, "medim", ["phantom_cxr"])
