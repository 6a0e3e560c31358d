"""The adapters are run against modules of the published call signatures, whose answers are a function of the text.

f1chexbert 0.0.2, radgraph 0.1.18 and radeval 2.2 need weights that are not here; what stands in for them below does
nothing but take their arguments and give values of their shapes.
"""

import sys
import types
from typing import ClassVar

import numpy as np
import pytest

from medim.metrics.chest_phrases import LABELS
from medim.metrics.clinical import (
    ce_rules_scores,
    ce_table_scores,
    chexbert_labels,
    chexbert_scores,
    radeval_scores,
    radgraph_scores,
    read_label_table,
)

TARGET_NAMES = [*(label for label in LABELS if label not in ("No Finding", "Support Devices")), "Support Devices",
                "No Finding"]  # fmt: skip
REFERENCE = {"a": "Small effusion.", "b": "No effusion.", "c": "Edema."}
GENERATED = {"a": "Small effusion.", "b": "Possible effusion.", "c": ""}


def chexbert_row(report, blank):
    """Effusion by its words; No Finding where there is none, also for an empty text, as a network may say."""
    row = dict.fromkeys(TARGET_NAMES, blank)
    if "effusion" in report.lower():
        row["Pleural Effusion"] = 0 if "No " in report else -1 if "Possible" in report else 1
    row["Edema"] = 1 if "Edema" in report else blank
    row["No Finding"] = blank if 1 in row.values() or -1 in row.values() else 1
    return list(row.values())


@pytest.fixture
def f1chexbert(monkeypatch):
    module = types.ModuleType("f1chexbert")

    class F1CheXbert:
        asked: ClassVar[list[str]] = []

        def __init__(self, refs_filename=None, hyps_filename=None, device=None, **kwargs):
            assert device == "cpu" and not kwargs
            self.target_names = TARGET_NAMES

        def get_label(self, report, mode="rrg"):
            assert mode == "classification"
            self.asked.append(report)
            return chexbert_row(report, "")

    module.F1CheXbert = F1CheXbert
    monkeypatch.setitem(sys.modules, "f1chexbert", module)
    return F1CheXbert


@pytest.fixture
def radeval(monkeypatch):
    package, metrics = types.ModuleType("radeval"), types.ModuleType("radeval.metrics")
    chexbert, radgraph = types.ModuleType("radeval.metrics.f1chexbert"), types.ModuleType("radeval.metrics.radgraph")

    class F1CheXbert:
        TARGET_NAMES = TARGET_NAMES

        def __init__(self, *, refs_filename=None, hyps_filename=None, device="cuda", batch_size=64):
            assert device == "cpu"

        def get_labels(self, reports, mode="rrg", on_batch_done=None):
            assert mode == "classification"
            return [chexbert_row(report, 0) for report in reports]

    class RadEval:
        def __init__(self, metrics=None, per_sample=False, detailed=False, show_progress=True):
            assert per_sample and not show_progress
            self.metrics = metrics

        def __call__(self, refs, hyps):
            each = [float(ref == hyp) for ref, hyp in zip(refs, hyps, strict=True)]
            return {name: [each] if name == "labels" else each for name in self.metrics}

    package.RadEval, chexbert.F1CheXbert, radgraph.F1RadGraph = RadEval, F1CheXbert, make_radgraph()
    for module in (package, metrics, chexbert, radgraph):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def make_radgraph():
    class F1RadGraph:
        def __init__(self, reward_level, model_type=None, **kwargs):
            assert (reward_level, model_type) == ("all", "radgraph-xl") and not kwargs

        def __call__(self, refs, hyps):
            same = [float(bool(hyp == ref)) for ref, hyp in zip(refs, hyps, strict=True)]
            levels = tuple([one * factor for one in same] for factor in (1.0, 0.5, 0.25))
            return tuple(np.mean(level) for level in levels), levels, [{}] * len(refs), [{}] * len(refs)

    return F1RadGraph


def test_our_rules_are_called_by_their_own_name():
    scores = ce_rules_scores(GENERATED, REFERENCE, 0, 50)
    assert all(name.startswith("ce_rules_") for name in scores)
    assert scores["ce_rules_f1 (Pleural Effusion)"].value == 1.0
    assert scores["ce_rules_f1 (Edema)"].value == 0.0, "an empty report says nothing, so it misses the edema"
    assert scores["ce_rules_micro_f1_5 (uncertain as negative)"].value == pytest.approx(2 / 3)
    assert scores["ce_rules_micro_f1_5 (uncertain as positive)"].value == pytest.approx(2 / 4)
    assert scores["ce_rules_f1 (No Finding)"].value == 0.0
    assert {score.n for score in scores.values()} == {3}
    with pytest.raises(ValueError, match="1 missing"):
        ce_rules_scores({"a": ""}, {"a": "x", "b": "y"}, 0, 5)


@pytest.mark.parametrize("package", ["f1chexbert", "radeval"])
def test_chexbert_by_either_package(package, f1chexbert, radeval):
    scores = chexbert_scores(GENERATED, REFERENCE, package, "cpu", 0, 50)
    assert all(name.startswith("chexbert_") for name in scores)
    assert scores["chexbert_f1 (Pleural Effusion)"].value == 1.0
    assert scores["chexbert_micro_f1_5 (uncertain as negative)"].value == pytest.approx(2 / 3)
    assert scores["chexbert_micro_f1_5 (uncertain as positive)"].value == pytest.approx(2 / 4)
    assert scores["chexbert_f1 (No Finding)"].value == 0.0, "the empty report's No Finding does not count"


def test_chexbert_reads_each_report_once_and_no_empty_one(f1chexbert):
    table = chexbert_labels(["Edema.", "", "Edema."], "f1chexbert", "cpu")
    assert f1chexbert.asked == ["Edema."]
    assert table[:, LABELS.index("Edema")].tolist() == [1, -2, 1]
    assert table[:, LABELS.index("Fracture")].tolist() == [-2, -2, -2]
    assert chexbert_labels([], "f1chexbert", "cpu").shape == (0, 14)


def test_chexbert_that_does_not_run_here_is_said(f1chexbert, monkeypatch):
    def broken(self, report, mode):
        raise AttributeError("BertTokenizer has no attribute encode_plus")

    monkeypatch.setattr(f1chexbert, "get_label", broken)
    with pytest.raises(RuntimeError, match="package='radeval'"):
        chexbert_labels(["x"], "f1chexbert", "cpu")
    monkeypatch.setattr(f1chexbert, "get_label", lambda self, report, mode: [1, 2])
    with pytest.raises(ValueError, match="expected CheXpert's"):
        chexbert_labels(["x"], "f1chexbert", "cpu")


@pytest.mark.parametrize("package", ["radgraph", "radeval"])
def test_radgraph_scores_and_an_empty_report(package, radeval, monkeypatch):
    module = types.ModuleType("radgraph")
    module.F1RadGraph = make_radgraph()
    monkeypatch.setitem(sys.modules, "radgraph", module)
    scores = radgraph_scores(GENERATED, REFERENCE, package, "radgraph-xl", 0, 50)
    assert {name: one.value for name, one in scores.items()} == pytest.approx(
        {"radgraph_simple": 1 / 3, "radgraph_partial": 1 / 6, "radgraph_complete": 1 / 12}
    )


def test_radeval_scores_carry_its_name(radeval):
    scores = radeval_scores(GENERATED, REFERENCE, ["bertscore", "ratescore"], 0, 50)
    assert list(scores) == ["bertscore (radeval)", "ratescore (radeval)"]
    assert scores["bertscore (radeval)"].value == pytest.approx(1 / 3) and scores["bertscore (radeval)"].n == 3
    with pytest.raises(ValueError, match="labels gives no single score"):
        radeval_scores(GENERATED, REFERENCE, ["labels"], 0, 50)


@pytest.mark.parametrize(
    ("package", "module", "call"),
    [
        ("f1chexbert", "f1chexbert", lambda: chexbert_scores(GENERATED, REFERENCE, "f1chexbert", "cpu", 0, 5)),
        ("radgraph", "radgraph", lambda: radgraph_scores(GENERATED, REFERENCE, "radgraph", "radgraph-xl", 0, 5)),
        ("radeval", "radeval", lambda: radeval_scores(GENERATED, REFERENCE, ["bertscore"], 0, 5)),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(ImportError, match=rf"{package} is not installed.*MEDIM_EXTRAS=dev,medical,clinical \./setup"):
        call()


def test_missing_weights_are_said(monkeypatch):
    module = types.ModuleType("radgraph")

    def offline(reward_level, model_type=None):
        raise OSError("We couldn't connect to the hub")

    module.F1RadGraph = offline
    monkeypatch.setitem(sys.modules, "radgraph", module)
    with pytest.raises(RuntimeError, match=r"radgraph cannot load its weights.*couldn't connect.*HF_HOME"):
        radgraph_scores(GENERATED, REFERENCE, "radgraph", "radgraph-xl", 0, 5)


def test_unknown_packages_are_refused():
    with pytest.raises(ValueError, match="got package 'x'"):
        chexbert_labels(["a"], "x", "cpu")
    with pytest.raises(ValueError, match="got package 'x'"):
        radgraph_scores(GENERATED, REFERENCE, "x", "radgraph-xl", 0, 5)


def table(path, labels, rows):
    lines = [",".join(["Reports", *labels]), *(",".join(["text", *row]) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_label_files_are_read_as_r2gen_reads_them(tmp_path):
    said = table(tmp_path / "res.csv", ["Edema", "Mass"], [["1.0", ""], ["-1.0", "1"], ["0", ""]])
    true = table(tmp_path / "gts.csv", ["Mass", "Edema"], [["", "1"], ["1.0", "1"], ["1", ""]])
    scores = ce_table_scores(said, true, 0, 50)
    assert all(name.startswith("ce_table_") for name in scores)
    assert scores["ce_table_micro_f1_2 (uncertain as negative)"].value == pytest.approx(2 * 2 / (2 + 4))
    assert scores["ce_table_macro_f1_2 (uncertain as negative)"].value == pytest.approx(2 / 3)
    assert scores["ce_table_micro_recall_2 (uncertain as negative)"].value == 0.5
    assert scores["ce_table_micro_precision_2 (uncertain as negative)"].value == 1.0


def test_a_report_of_several_lines_is_one_cell(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('Reports,Edema\n"1. Edema.\n\n2. More\u2028lines.",1\n')
    labels, cells = read_label_table(path)
    assert labels == ["Edema"] and cells.tolist() == [[1]]


def test_wrong_label_files_are_named(tmp_path):
    good = table(tmp_path / "a.csv", ["Edema"], [["1"]])
    with pytest.raises(ValueError, match="same columns and one row a study"):
        ce_table_scores(good, table(tmp_path / "b.csv", ["Mass"], [["1"]]), 0, 5)
    with pytest.raises(ValueError, match="same columns and one row a study"):
        ce_table_scores(good, table(tmp_path / "c.csv", ["Edema"], [["1"], ["1"]]), 0, 5)
    with pytest.raises(ValueError, match=r"row 1, Edema: '2' is no label"):
        read_label_table(table(tmp_path / "d.csv", ["Edema"], [["2"]]))
    with pytest.raises(ValueError, match="row 1 has 3 cells, the header 2"):
        read_label_table(table(tmp_path / "e.csv", ["Edema"], [["1", "1"]]))
    with pytest.raises(FileNotFoundError, match="outside labeller"):
        read_label_table(tmp_path / "none.csv")
    (tmp_path / "f.csv").write_text("")
    with pytest.raises(ValueError, match="a column a label"):
        read_label_table(tmp_path / "f.csv")
