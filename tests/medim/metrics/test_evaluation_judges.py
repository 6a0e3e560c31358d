"""What else is measured of pairs: Qwen2-VL as judge of free ones, their prompts, labels of chest reports by rules."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from certain_reader import certain_reader
from tiny_qwen import make_model, make_processor

from medim.data.splits import drawn_pairs
from medim.evaluation import Evaluation, EvaluationSettings, Reference
from medim.metrics import clinical
from medim.metrics.bootstrap import bootstrap_mean
from medim.metrics.clinical import ClinicalSettings, ce_rules_scores
from medim.metrics.image_quality import QualitySettings
from medim.metrics.java import Meteor
from medim.metrics.qwen_judge import QwenSettings, load_qwen_judge, qwen_alignment
from medim.pairs import load_images, write_pairs
from medim.systems import Sample

QUALITY = QualitySettings(1, 2, 4, 3, 5)
PROMPTS = {"phantom_cxr": "chest x-ray"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for split, count in (("train", 20), ("test", 8)):
        write_pairs(folder / f"{split}.parquet", drawn_pairs("phantom_cxr", split, 0, count, 32))
    return Reference("phantom_cxr", folder / "test.parquet", folder / "train.parquet", certain_reader("edema"))


def samples(reference, task):
    """Pairs of the test set as if a system had made them, each with its neighbour's report."""
    pairs, images = reference.test, load_images(reference.test)
    return [
        Sample(
            row="x", task=task, dataset="phantom_cxr", pair_id=pair.pair_id, seed=n, image=images[n],
            prompt=pair.prompt, report=pairs[n - 1].report, evaluations=1,
        )
        for n, pair in enumerate(pairs)
    ]  # fmt: skip


def evaluation(reference, qwen=None, ce_rules=()):
    return Evaluation(
        {"phantom_cxr": reference}, PROMPTS, EvaluationSettings(20, QUALITY, None, qwen, ce_rules), Meteor(), 0
    )


def test_free_pairs_get_the_judges_own_scores(reference, tmp_path):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    make_model(processor, spread=0.4).save_pretrained(tmp_path)
    qwen = QwenSettings("Qwen2-VL", str(tmp_path), 28 * 28 * 4, 28 * 28 * 16, 8, 3, "float32")
    asked = samples(reference, "joint")
    scores = evaluation(reference, qwen).row(asked)
    judge = load_qwen_judge(qwen, torch.device("cpu"))
    images = np.stack([one.image for one in asked])
    alone = qwen_alignment(judge, images, [one.report for one in asked], 0, 20)
    assert {f"phantom_cxr/joint/{name}" for name in alone} <= set(scores)
    for name, found in alone.items():
        for mine, theirs in zip(scores[f"phantom_cxr/joint/{name}"], found, strict=True):  # None: not measured
            assert mine == (theirs if theirs is None else pytest.approx(theirs, rel=1e-5)), name
    assert "phantom_cxr/joint/alignment (Qwen2-VL, grid)" in scores
    without = evaluation(reference).row(asked)
    assert set(scores) - set(without) == {f"phantom_cxr/joint/{name}" for name in alone}


def test_free_pairs_whose_prompt_no_training_pair_has_are_counted(reference):
    asked = [replace(one, prompt=reference.train[n].prompt) for n, one in enumerate(samples(reference, "joint"))]
    wrong = [replace(one, prompt=one.prompt + ", left left lung") if n < 2 else one for n, one in enumerate(asked)]
    found = [evaluation(reference).row(group)["phantom_cxr/joint/known_prompts"] for group in (asked, wrong)]
    assert [(one.value, one.n) for one in found] == [(1.0, 8), (0.75, 8)]


def test_a_missing_judge_is_named_when_it_is_asked(reference, tmp_path):
    qwen = QwenSettings("Qwen2-VL", str(tmp_path / "no"), 4, 16, 8, 3, "float32")
    with pytest.raises(FileNotFoundError, match=r"no lacks config.json.*hf download Qwen/Qwen2-VL-7B-Instruct"):
        evaluation(reference, qwen).row(samples(reference, "joint"))


def test_chest_reports_are_also_compared_by_labels(reference):
    said = samples(reference, "image_to_report")
    with Meteor() as meteor:
        settings = EvaluationSettings(20, QUALITY, None, None, ("phantom_cxr",))
        scores = Evaluation({"phantom_cxr": reference}, PROMPTS, settings, meteor, 0).row(said)
        plain = EvaluationSettings(20, QUALITY, None, None, ("another",))
        without = Evaluation({"phantom_cxr": reference}, PROMPTS, plain, meteor, 0).row(said)
    true = {pair.pair_id: pair.report for pair in reference.test}
    alone = ce_rules_scores({one.pair_id: one.report for one in said}, true, 0, 20)
    assert {name: scores[f"phantom_cxr/image_to_report/{name}"] for name in alone} == alone
    assert set(scores) - set(without) == {f"phantom_cxr/image_to_report/{name}" for name in alone}


def test_packages_score_the_reports_of_the_datasets_that_are_named(reference, monkeypatch):
    """The packages are stood in for; what they are asked, and under which names their answers come, is real."""
    asked = []

    def fake(name):
        def scores(said, true, *rest):
            asked.append((name, len(said), sorted(said) == sorted(true), rest[:-2]))
            return {f"{name}_x": bootstrap_mean([0.5], *rest[-2:])}

        return scores

    for name in ("chexbert", "radgraph", "radeval"):
        monkeypatch.setattr(clinical, f"{name}_scores", fake(name))
    wanted = ClinicalSettings(("phantom_cxr",), "radeval", "radgraph", "radgraph-xl", ("bertscore",))
    answers = samples(reference, "image_to_report")

    def found(settings):
        whole = EvaluationSettings(20, QUALITY, None, None, (), settings)
        with Meteor() as meteor:
            return Evaluation({"phantom_cxr": reference}, PROMPTS, whole, meteor, 0).row(answers)

    names = {f"phantom_cxr/image_to_report/{name}_x" for name in ("chexbert", "radgraph", "radeval")}
    assert names <= set(found(wanted))
    assert asked == [
        ("chexbert", len(answers), True, ("radeval", "cpu")),
        ("radgraph", len(answers), True, ("radgraph", "radgraph-xl")),
        ("radeval", len(answers), True, (("bertscore",),)),
    ]
    assert not names & set(found(replace(wanted, datasets=("another",)))) and len(asked) == 3
    with pytest.raises(ValueError, match=r"clinical.chexbert is 'radgraph': radeval or f1chexbert, or null"):
        replace(wanted, chexbert="radgraph")
