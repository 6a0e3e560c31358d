"""What is promised and whether it is reached, from metrics written by hand."""

import csv
import io
import json

import pytest

from medim import table_render
from medim.mission import Goal, mission_rows, worst_finding, write_summaries
from medim.table_cells import build_table
from medim.tables import MISSION_METRICS, MISSION_ROWS, get_table, phantom_world

CXR, TILES = "phantom_cxr", "phantom_pathology"
F1 = Goal("findings in reports", "image_to_report/finding_f1", 0.85, "value", (CXR, TILES))
GAP = Goal("not nearer", "report_to_image/nearest_train_gap", 0.0, "high", (CXR,))
WORST = Goal("worst finding kept", "vqgan/finding_f1_ratio_worst", 0.85, "value", (CXR,))
SIDE = Goal("sides", "image_to_report/side_auroc", 0.95, "value", (CXR,))
TRIVIAL = [row.name for row in MISSION_ROWS if row.name.startswith("trivial: ")]


def entry(value, low=None, high=None, n=384):
    return {"value": value, "low": low, "high": high, "n": n}


def metrics(**medim):
    reports = f"{CXR}/image_to_report/finding_f1"
    kept = {f"{CXR}/vqgan/finding_f1_ratio_worst": entry(0.6, 0.5, 0.7)}
    kept |= {
        f"{CXR}/vqgan/finding_f1_ratio (left {name})": entry(v) for name, v in (("effusion", 0.9), ("nodule", 0.6))
    }
    return {
        "medim": {"model": "medim", "rows": {"MeDiM": {reports: entry(0.9, 0.88, 0.92)} | medim}},
        "vqgan": {"model": "vqgan", "rows": {"MeDiM": kept}},
        "trivial": {"model": "trivial", "rows": {name: {reports: entry(k / 10)} for k, name in enumerate(TRIVIAL)}},
    }


def rows(goals, found):
    return mission_rows(goals, build_table(get_table("mission"), found, phantom_world("phantom")), found)


def test_a_row_holds_the_measured_value_its_goal_and_the_trivial_values():
    chest, tiles = rows([F1], metrics())
    assert chest == {
        "what": "findings in reports", "domain": CXR, "column": f"{CXR}/image_to_report/finding_f1", "value": 0.9,
        "low": 0.88, "high": 0.92, "n": 384, "goal": 0.85, "judged_by": "value", "reached": "yes", "worst": None,
        "trivial": {"constant": 0.0, "random training pair": 0.1, "nearest neighbour": 0.2},
    }  # fmt: skip
    assert (tiles["domain"], tiles["value"], tiles["reached"]) == (TILES, None, "not measured")
    assert tiles["trivial"] == dict.fromkeys(chest["trivial"])


def test_summaries_hold_what_was_measured_of_each_dataset(tmp_path):
    built = build_table(get_table("mission"), metrics(), phantom_world("phantom"))
    write_summaries(built, {"chest": CXR, "pathology": TILES, "none": None}, tmp_path / "summary")
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "summary").iterdir()}
    assert found["chest.json"] == {
        "image_to_report/finding_f1": 0.9, "vqgan/finding_f1_ratio_worst": 0.6, "difficulty/nearest_neighbour_f1": 0.2,
    }  # fmt: skip
    assert found["pathology.json"] == found["none.json"] == {}


def test_rows_stand_dataset_by_dataset():
    found = rows([F1, GAP, WORST], metrics())
    assert [(row["domain"], row["what"]) for row in found] == [
        (CXR, F1.what), (CXR, GAP.what), (CXR, WORST.what), (TILES, F1.what)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "low", "high", "reached"),
    [
        (3.0, 2.0, 4.0, "yes"), (-0.5, -1.5, 0.5, "yes"), (-2.0, -3.0, -1.0, "no"), (3.0, None, None, "not measured"),
        (None, None, None, "not measured"),
    ],
)  # fmt: skip
def test_what_is_judged_by_its_interval_may_be_lower_within_it(value, low, high, reached):
    key = f"{CXR}/report_to_image/nearest_train_gap"
    (row,) = rows([GAP], metrics(**{key: entry(value, low, high)}))
    assert row["reached"] == reached


@pytest.mark.parametrize(("value", "reached"), [(0.95, "yes"), (0.9499, "no")])
def test_the_side_scores_stand_under_their_own_key(value, reached):
    (row,) = rows([SIDE], metrics(**{f"{CXR}/side/side_auroc": entry(value, n=300)}))
    assert (row["value"], row["n"], row["reached"], row["trivial"]) == (value, 300, reached, {})


def test_the_worst_finding_has_a_name():
    (row,) = rows([WORST], metrics())
    assert (row["value"], row["worst"], row["reached"], row["trivial"]) == (0.6, "left nodule", "no", {})
    assert worst_finding(f"{TILES}/vqgan/finding_f1_ratio_worst", metrics()) is None


def test_what_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no column 'joint/f1' in the table mission"):
        Goal("x", "joint/f1", 0.5, "value", (CXR,))
    with pytest.raises(ValueError, match="judged_by must be value or high, got 'low'"):
        Goal("x", MISSION_METRICS[0], 0.5, "low", (CXR,))
    with pytest.raises(KeyError, match="no column phantom_cxr_ood/image_to_report/finding_f1"):
        rows([Goal("x", F1.column, 0.5, "value", ("phantom_cxr_ood",))], metrics())


def rendered(goals):
    found = metrics()
    built = build_table(get_table("mission"), found, phantom_world("phantom"))
    built["goals"] = mission_rows(goals, built, found)
    return json.loads(json.dumps(built))


def test_pages_show_the_promises_before_the_table():
    built = rendered([F1, WORST])
    text, page = table_render.render_markdown(built), table_render.render_html(built)
    lines = [line for line in text.splitlines() if "phantom\\_cxr |" in line]
    assert lines == [
        "| findings in reports | phantom\\_cxr | 0.900 (0.880–0.920) | 384 | ≥ 0.85 | yes | 0.000 | 0.100 | 0.200 |",
        "| worst finding kept (left nodule) | phantom\\_cxr | 0.600 (0.500–0.700) | 384 | ≥ 0.85 | no |  |  |  |",
    ]
    assert text.index(table_render.GOAL_HEADING) < text.index("| **phantom\\_cxr** |")
    assert "<td>0.600 (0.500–0.700)</td><td>384</td><td>≥ 0.85</td><td>no</td>" in page


def test_without_promises_pages_are_as_before():
    built = rendered([])
    plain = {key: value for key, value in built.items() if key != "goals"}
    for render in (table_render.render_markdown, table_render.render_html, table_render.render_csv):
        assert render(built) == render(plain)


def test_the_csv_says_what_is_promised_of_a_cell():
    built = rendered([F1, WORST])
    lines = list(csv.DictReader(io.StringIO(table_render.render_csv(built))))
    assert len(lines) == len(built["cells"])
    promised = {(line["row"], line["column"]): (line["goal"], line["reached"]) for line in lines if line["goal"]}
    assert promised == {
        ("MeDiM", f"{CXR}/image_to_report/finding_f1"): ("0.85", "yes"),
        ("MeDiM", f"{CXR}/vqgan/finding_f1_ratio_worst"): ("0.85", "no"),
        ("MeDiM", f"{TILES}/image_to_report/finding_f1"): ("0.85", "not measured"),
    }
