"""Tables: the paper's numbers as printed, cells from metrics files by hand, and no number where none was measured."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medim import paper_numbers, table_render, tables
from medim.table_cells import build_table, read_metrics
from medim.tables import TABLES, World, get_table, phantom_world

PRINTED = Path(__file__).parents[2] / "../shared/paper/tables.yaml"
WORLD = phantom_world("phantom")
REAL = World("paper", "mimic_cxr", "pathgen", "iu_xray", drawn=False)
CELL = {"row", "column", "metric", "value", "low", "high", "n", "seeds", "better", "paper"}
IDS = [table.id for table in TABLES]


def entry(value, low=None, high=None, n=500):
    return {"value": value, "low": low, "high": high, "n": n}


def model(row: str, **values) -> dict:
    return {"model": row, "rows": {row: {key: e if isinstance(e, dict) else entry(e) for key, e in values.items()}}}


def cell(built: dict, row: str, column: str) -> dict:
    (found,) = [c for c in built["cells"] if (c["row"], c["column"]) == (row, column)]
    return found


@pytest.mark.skipif(not PRINTED.is_file(), reason="needs the transcription of the paper")
def test_paper_numbers_are_the_printed_ones():
    import yaml

    assert paper_numbers.paper_numbers() == yaml.safe_load(PRINTED.read_text())


def test_ids_are_those_that_others_rely_on():
    figures = ["figure5a", "figure5b", "figure5c", "figure6a", "figure6b"]
    assert ["mission", "vqgan", "report_errors", *(f"table{k}" for k in range(1, 8)), *figures, "downstream"] == IDS


@pytest.mark.parametrize("number", range(1, 8))
def test_rows_are_the_papers_in_its_order(number):
    names = [row.name for row in get_table(f"table{number}").rows]
    assert names == [
        *paper_numbers.printed_rows(f"table{number}")[1],
        "trivial: constant", "trivial: random training pair", "trivial: nearest neighbour",
    ]  # fmt: skip


@pytest.mark.parametrize("table_id", IDS)
def test_every_printed_number_stands_in_a_real_world(table_id):
    """And only beside NLTK and Inception columns, each exactly once."""
    built = build_table(get_table(table_id), {}, REAL)
    shown = sorted(c["paper"] for c in built["cells"] if c["paper"] is not None)
    columns, rows = paper_numbers.printed_rows(table_id)
    printed = sorted(
        float(str(value).rstrip("%"))
        for row in rows.values()
        for column, value in zip(columns, row, strict=True)
        if column != "type" and value is not None
    )
    assert shown == printed
    assert all(
        "(nltk)" in c["metric"] or c["metric"] in ("FID", "IS") for c in built["cells"] if c["paper"] is not None
    )


@pytest.mark.parametrize("table_id", IDS)
def test_nothing_measured_gives_nulls_not_numbers(table_id):
    built = build_table(get_table(table_id), {}, WORLD)
    assert built["id"] == table_id and built["profile"] == "phantom" and built["cells"]
    assert all(set(c) == CELL and c["value"] is None and c["low"] is None for c in built["cells"])
    assert len({(c["row"], c["column"]) for c in built["cells"]}) == len(built["cells"])
    assert all(set(e) == {"row", "column", "why"} for e in built["left_out"])
    assert {c["column"].split("/")[0] for c in built["cells"]} <= {
        "phantom_cxr", "phantom_pathology", "phantom_cxr_ood", "mean"
    }  # fmt: skip
    json.dumps(built)


def test_proxies_never_stand_beside_printed_numbers():
    built = build_table(get_table("table1"), {}, WORLD)
    assert {c["paper"] for c in built["cells"]} == {None}
    assert "phantom_cxr/FID (phantom features)" in {c["column"] for c in built["cells"]}
    assert "phantom_cxr/FID" not in {c["column"] for c in built["cells"]}


def test_a_cell_is_what_the_metrics_file_says():
    key = "phantom_cxr/report_to_image/FID (phantom features)"
    metrics = {"u_kan": model("U-KAN", **{key: entry(12.5, 11.0, 14.0, 300)})}
    found = cell(build_table(get_table("table1"), metrics, WORLD), "U-KAN", "phantom_cxr/FID (phantom features)")
    assert found == {
        "row": "U-KAN", "column": "phantom_cxr/FID (phantom features)", "metric": "FID (phantom features)",
        "value": 12.5, "low": 11.0, "high": 14.0, "n": 300, "seeds": 1, "better": "lower", "paper": None,
    }  # fmt: skip


def test_printed_report_numbers_stand_beside_the_nltk_protocol_only():
    built = build_table(get_table("table7"), {}, WORLD)
    assert cell(built, "MeDiM", "phantom_cxr/BLEU-1 (nltk)")["paper"] == 0.328
    assert cell(built, "MeDiM", "phantom_cxr/BLEU-1 (coco)")["paper"] is None
    assert (
        cell(build_table(get_table("table3"), {}, WORLD), "BLIP", "phantom_pathology/ROUGE-L (nltk)")["paper"] == 0.236
    )


def test_table4_is_the_mean_of_both_datasets():
    """Half-widths 3 and 4 of independent numbers: sqrt(9 + 16) / 2 = 2.5."""
    keys = [f"phantom_{name}/image_to_report/BLEU-1 (nltk)" for name in ("cxr", "pathology")]
    both = model("MeDiM", **{keys[0]: entry(10, 7, 13, 100), keys[1]: entry(20, 16, 24, 50)})
    found = cell(build_table(get_table("table4"), {"medim": both}, WORLD), "MeDiM", "mean/BLEU-1 (nltk)")
    assert (found["value"], found["low"], found["high"], found["n"]) == (15, 12.5, 17.5, 150)
    assert found["paper"] == 0.256
    one = model("MeDiM", **{keys[0]: 10.0})
    built = build_table(get_table("table4"), {"medim": one}, WORLD)
    assert cell(built, "MeDiM", "mean/BLEU-1 (nltk)")["value"] is None


def test_table4_names_findings_of_both_tasks_apart():
    columns = {c["column"] for c in build_table(get_table("table4"), {}, WORLD)["cells"]}
    assert {"mean/image_to_report/finding_f1", "mean/report_to_image/finding_f1"} <= columns


def test_training_seeds_are_averaged_and_counted():
    key = "phantom_cxr/image_to_report/BLEU-1 (nltk)"
    metrics = {
        "r2gen_real_0": model("R2Gen", **{key: entry(0.2, 0.1, 0.3)}),
        "r2gen_real_1": model("R2Gen", **{key: entry(0.4, 0.3, 0.5)}),
        "r2gen_real_medim_0": model("R2Gen", **{key: entry(0.45)}),
    }
    built = build_table(get_table("figure5b"), metrics, WORLD)
    found = cell(built, "real only", "phantom_cxr/BLEU-1 (nltk)")
    assert (found["value"], found["low"], found["high"], found["seeds"]) == (pytest.approx(0.3), 0.1, 0.5, 2)
    assert cell(built, "MeDiM, gain over real only", "phantom_cxr/BLEU-1 (nltk)")["value"] == pytest.approx(50)
    assert cell(built, "UniDisc, gain over real only", "phantom_cxr/BLEU-1 (nltk)")["value"] is None


def test_a_variant_with_another_seed_is_the_same_row():
    key = "phantom_cxr/image_to_report/finding_f1"
    metrics = {name: model("MeDiM", **{key: entry(v)}) for name, v in (("medim", 0.5), ("medim_seed2", 0.7))}
    found = cell(build_table(get_table("mission"), metrics | {"medim_seed": metrics["medim"]}, WORLD), "MeDiM", key)
    assert (found["value"], found["seeds"]) == (pytest.approx(0.6), 2)


def test_printed_gains_stand_in_figure5c():
    built = build_table(get_table("figure5c"), {}, WORLD)
    assert cell(built, "MeDiM, gain over real only", "phantom_pathology/BLEU-2 (nltk)")["paper"] == 18.57


def test_mission_takes_the_tokenizer_and_the_difficulty_from_their_files():
    reports, vqgan = "phantom_cxr/image_to_report/finding_f1", "phantom_cxr/vqgan/psnr"
    metrics = {
        "medim": model("MeDiM", **{reports: 0.9}),
        "vqgan": model("MeDiM", **{vqgan: 30.0}),
        "trivial": {"model": "trivial", "rows": {row.name: {reports: entry(0.6)} for row in tables._trivial()}},
    }
    built = build_table(get_table("mission"), metrics, WORLD)
    assert cell(built, "MeDiM", reports)["value"] == 0.9
    assert cell(built, "MeDiM", vqgan)["value"] == 30.0
    assert cell(built, "MeDiM", "phantom_cxr/difficulty/nearest_neighbour_f1")["value"] == 0.6
    assert cell(built, "trivial: constant", reports)["value"] == 0.6
    left = {(e["row"], e["column"]) for e in built["left_out"]}
    assert ("trivial: constant", vqgan) in left
    assert ("trivial: nearest neighbour", "phantom_cxr/joint/finding_f1") in left
    assert ("trivial: constant", "phantom_cxr/joint/finding_f1") not in left


def test_medim_never_takes_a_trivial_rows_numbers():
    trivial = {row.name: {"phantom_cxr/image_to_report/finding_f1": entry(0.6)} for row in tables._trivial()}
    built = build_table(get_table("mission"), {"trivial": {"model": "trivial", "rows": trivial}}, WORLD)
    assert cell(built, "MeDiM", "phantom_cxr/image_to_report/finding_f1")["value"] is None


def test_what_a_world_can_measure_for_no_row_stands_there_as_not_measured():
    keys = {"chest/image_to_report/BLEU-1 (nltk)": 0.5, "chest/image_to_report/METEOR (coco)": entry(None)}
    world = World("folder", "chest", "histology", None, drawn=False)
    built = build_table(get_table("table7"), {"medim": model("MeDiM", **keys)}, world)
    assert {c["column"] for c in built["cells"] if c["value"] is not None} == {"chest/BLEU-1 (nltk)"}
    assert cell(built, "MeDiM", "chest/METEOR (coco)")["value"] is None
    mission = build_table(get_table("mission"), {"medim": model("MeDiM", **keys)}, world)
    assert cell(mission, "MeDiM", "chest/image_to_report/finding_f1")["value"] is None


@pytest.mark.parametrize("table", ["table1", "table3", "table7"])
def test_findings_stand_in_tables_of_real_data_too(table):
    built = build_table(get_table(table), {}, World("folder", "chest", "histology", None, drawn=False))
    findings = [c for c in built["cells"] if c["column"] == "chest/finding_f1"]
    assert findings and {c["value"] for c in findings} == {None}


def test_a_world_without_a_dataset_says_so():
    built = build_table(get_table("table5"), {}, World("folder", "mine", None, None, drawn=False))
    assert built["cells"] == [] and built["left_out"][0]["why"] == "this world has no ood dataset"


def test_a_missing_row_is_an_error_that_names_the_file():
    with pytest.raises(KeyError, match=r"metrics/medim.json lacks the row 'MeDiM'"):
        build_table(get_table("table1"), {"medim": {"rows": {"other": {}, "more": {}}}}, WORLD)
    with pytest.raises(KeyError, match="only row"):
        build_table(get_table("table1"), {"u_kan": {"rows": {"a": {}, "b": {}}}}, WORLD)
    with pytest.raises(KeyError, match="there are mission"):
        get_table("table8")


def test_directions():
    lower = ("FID", "FID (phantom features)", "KID", "x/vqgan/reconstruction FID (phantom features)")
    assert {tables.better_of(m) for m in lower} == {"lower"}
    assert {tables.better_of(m) for m in ("IS", "BLEU-1 (coco)", "joint/finding_f1")} == {"higher"}


def test_what_is_neither_better_high_nor_low_has_no_arrow_and_no_best():
    assert tables.better_of("x/joint/silent_pairs") == tables.better_of("length_ratio") == "neither"
    metrics = {"phantom_cxr/image_to_report/length_ratio": 0.4, "phantom_cxr/image_to_report/distinct_reports": 0.4}
    more = {name: 2 * value for name, value in metrics.items()}
    built = build_table(
        get_table("table7"), {"medim": model("MeDiM", **metrics), "llava_rad": model("a", **more)}, WORLD
    )
    assert table_render.best_rows(built) == {("LLaVA-Rad", "phantom_cxr/distinct_reports")}
    assert "length\\_ratio |" in table_render.render_markdown(built)


def test_a_column_of_equal_values_has_no_best():
    key = "phantom_cxr/image_to_report/finding_f1"
    models = {"medim": model("MeDiM", **{key: 0.0}), "llava_rad": model("a", **{key: 0.0})}
    built = build_table(get_table("table7"), models, WORLD)
    assert table_render.best_rows(built) == set()


@pytest.mark.parametrize(("trivial", "best"), [(0.3, True), (0.5, False), (0.6, False)])
def test_nothing_is_best_where_a_trivial_row_is_as_good(trivial, best):
    key = "phantom_cxr/image_to_report/finding_f1"
    rules = {row.name: {key: entry(trivial if row.name == "trivial: constant" else 0.1)} for row in tables._trivial()}
    models = {"medim": model("MeDiM", **{key: 0.5}), "llava_rad": model("a", **{key: 0.4})}
    models["trivial"] = {"model": "trivial", "rows": rules}
    built = build_table(get_table("table7"), models, WORLD)
    assert cell(built, "trivial: constant", "phantom_cxr/finding_f1")["value"] == trivial
    assert table_render.best_rows(built) == ({("MeDiM", "phantom_cxr/finding_f1")} if best else set())


def test_the_tokenizers_table_has_each_finding_of_each_dataset():
    keys = {"phantom_cxr/vqgan/finding_f1_ratio (left effusion)": entry(0.9), "phantom_cxr/vqgan/psnr": entry(29.0)}
    built = build_table(get_table("vqgan"), {"vqgan": model("VQGAN", **keys)}, WORLD)
    assert cell(built, "VQGAN", "phantom_cxr/finding_f1_ratio (left effusion)")["value"] == 0.9
    assert cell(built, "VQGAN", "phantom_pathology/finding_f1_ratio (necrosis)")["value"] is None


def example(profile: str = "phantom") -> dict:
    key = "phantom_cxr/report_to_image/FID (phantom features)"
    metrics = {
        "liquid": model("Liquid*", **{key: entry(20.0, 18.0, 22.0)}),
        "medim": model("MeDiM", **{key: entry(10.0, 9.0, 11.0)}),
    }
    return build_table(get_table("table1"), metrics, phantom_world(profile))


def test_markdown_shows_values_holes_and_the_papers_numbers_apart():
    text = table_render.render_markdown(example(), ["note of the caller"])
    measured, printed = text.split(f"## {table_render.PAPER_HEADING}")
    rows = {line.split("|")[1].strip(): line for line in measured.splitlines() if line.startswith("|")}
    assert "**10.00** (9.00–11.00)" in rows["MeDiM"] and "20.00 (18.00–22.00)" in rows["Liquid\\*"]
    assert "not measured" in rows["SDM"] and "156.09" not in measured and "156.09" in printed
    assert "note of the caller" in measured and "n = 500" in measured


def test_a_wide_table_stands_on_its_side_with_one_part_a_dataset():
    text = table_render.render_markdown(build_table(get_table("mission"), {}, WORLD))
    heads = [line for line in text.splitlines() if line.startswith("| **")]
    rows = " | ".join(name.replace("_", "\\_") for name in (r.name for r in get_table("mission").rows))
    assert heads == [f"| **phantom\\_cxr** | {rows} |", f"| **phantom\\_pathology** | {rows} |"]
    lines = [line.split(" | ")[0] for line in text.splitlines()]
    assert lines.count("| joint/finding\\_f1 ↑") == lines.count("| vqgan/psnr ↑") == 2


def test_what_is_left_out_for_one_reason_is_one_line():
    notes = table_render.footnotes(build_table(get_table("mission"), {}, WORLD), ())
    (line,) = [note for note in notes if "how good the image tokenizer is" in note]
    assert line.startswith("Left out: vqgan/finding_f1_ratio, vqgan/finding_f1_ratio_worst, vqgan/psnr of trivial: c")


def test_large_numbers_have_no_digits_after_the_point():
    metrics = {"medim": model("MeDiM", **{"phantom_cxr/report_to_image/FID (phantom features)": 1234.56})}
    built = build_table(get_table("table1"), metrics, WORLD)
    assert "| 1235 |" in table_render.render_markdown(built)


def test_tiny_says_that_its_numbers_mean_nothing():
    for render in (table_render.render_markdown, table_render.render_html):
        assert table_render.TINY in render(example("tiny"))
        assert table_render.TINY not in render(example())


@pytest.mark.parametrize("table_id", IDS)
def test_every_table_renders_the_same_bytes_in_every_format(table_id):
    for world in (WORLD, REAL, World("folder", "mine", None, None, drawn=False)):
        built = build_table(get_table(table_id), {}, world)
        for render in (table_render.render_markdown, table_render.render_csv, table_render.render_html):
            assert render(built) == render(json.loads(json.dumps(built)))


def test_csv_is_the_cells():
    built = example()
    lines = list(csv.DictReader(io.StringIO(table_render.render_csv(built))))
    assert len(lines) == len(built["cells"]) and set(lines[0]) == CELL
    assert next(line["value"] for line in lines if line["row"] == "SDM") == ""


class Rows(HTMLParser):
    """Rows of cells of every table, and whether all tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag == "meta":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "tr" in self.open and data.strip():
            self.rows[-1][-1] += data


def test_html_is_well_formed_and_bold_is_the_best():
    page = table_render.render_html(example())
    parser = Rows()
    parser.feed(page)
    assert parser.open == []
    medim = next(row for row in parser.rows if row[0] == "MeDiM")
    empty = ["not measured"] * (len(medim) - 2)
    assert medim == ["MeDiM", "10.009.00–11.00", *empty] and ["SDM", "not measured", *empty] in parser.rows
    assert "<b>10.00</b>" in page and "<b>20.00</b>" not in page and "white-space:nowrap" in page


def test_one_measured_value_is_not_the_best_of_anything():
    built = example()
    built["cells"] = [c for c in built["cells"] if c["row"] != "Liquid*"]
    assert table_render.best_rows(built) == set()


def test_files_of_models_no_longer_named_stay_out(tmp_path, capsys):
    for name in ("medim", "medim_2", "vqgan"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"model": name, "rows": {}}))
    (tmp_path / "finding_reader.json").write_text(json.dumps({"f1": 1}))
    assert sorted(read_metrics(tmp_path, ["medim", "trivial", "vqgan"])) == ["medim", "vqgan"]
    said = capsys.readouterr().out
    assert "medim_2.json is of no model in params.yaml:evaluate.models" in said and "finding_reader" not in said
