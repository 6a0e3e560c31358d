"""Rows of systems and variants that no table names: where they stand, and what is in them."""

from test_tables import WORLD, cell, entry, model

from medim import table_render, tables
from medim.further_rows import with_further_rows
from medim.table_cells import build_table
from medim.tables import TABLES, get_table


def further(**metrics) -> dict[str, list[str]]:
    """Rows of every table, with those of models that no table names."""
    found = {}
    for table in TABLES:
        built = build_table(with_further_rows(table, metrics, list(metrics), WORLD), metrics, WORLD)
        found[table.id] = table_render.row_names(built)
    return found


def test_a_system_that_no_table_names_has_rows_where_it_answers():
    plain = further()
    added = further(
        mine=model("Mine", **{"phantom_cxr/image_to_report/finding_f1": 0.5}),
        yours=model("Yours", **{"phantom_pathology/report_to_image/finding_f1": 0.4}),
    )
    for table_id, rows in plain.items():
        new = {"table3": ["Mine"], "table2": ["Yours"]}.get(table_id, [])
        first = next((i for i, name in enumerate(rows) if name.startswith("trivial")), len(rows))
        assert added[table_id] == [*rows[:first], *new, *rows[first:]]


def test_a_further_row_holds_the_systems_numbers():
    metrics = {"mine": model("Mine", **{"phantom_cxr/image_to_report/finding_f1": entry(0.5, 0.4, 0.6)})}
    table = with_further_rows(get_table("table3"), metrics, ["mine"], WORLD)
    built = build_table(table, metrics, WORLD)
    found = cell(built, "Mine", "phantom_cxr/finding_f1")
    assert (found["value"], found["low"], found["high"], found["paper"]) == (0.5, 0.4, 0.6, None)
    assert cell(built, "Mine", "phantom_pathology/finding_f1")["value"] is None
    lines = [line.split(" | ") for line in table_render.render_markdown(built).splitlines()]
    systems = next(line for line in lines if "Mine" in line)
    scores = next(line for line in lines if line[0].endswith("f1 ↑"))
    assert scores[systems.index("Mine")] == "0.500 (0.400–0.600)"


def test_variants_stand_in_the_ablation_and_seeds_nowhere():
    """A variant's only row is MeDiM's; seeds are in the row of their model, a variant's too."""
    value = {"phantom_cxr/image_to_report/finding_f1": 0.5, "phantom_pathology/image_to_report/finding_f1": 0.5}
    plain = further(medim=model("MeDiM", **value))
    names = ("medim", "medim_3x", "medim_3x_seed2", "medim_seed2")
    metrics = {name: model("MeDiM", **value) for name in names}
    added = further(**metrics)
    assert added.pop("table4") == [*plain["table4"][:-3], "medim_3x", *plain.pop("table4")[-3:]]
    assert added == plain
    built = build_table(with_further_rows(get_table("table4"), metrics, names, WORLD), metrics, WORLD)
    assert cell(built, "medim_3x", "mean/image_to_report/finding_f1")["seeds"] == 2


def test_a_variant_of_one_dataset_fills_no_mean():
    value = {"phantom_cxr/image_to_report/finding_f1": 0.5}
    assert further(medim_x=model("MeDiM", **value)) == further()


def test_readers_ratings_reach_a_further_system():
    rated = {name: {} for name in ("UniDisc", "MeDiM", "real")}
    readers = {"rows": rated | {"Mine": {"phantom_cxr/joint/human agreement": entry(4.0)}}}
    metrics = {"mine": model("Mine", **{"phantom_cxr/joint/finding_f1": 0.5}), tables.READERS: readers}
    built = build_table(with_further_rows(get_table("figure5a"), metrics, ["mine"], WORLD), metrics, WORLD)
    assert cell(built, "Mine", "phantom_cxr/human agreement")["value"] == 4.0
