"""Bar charts: heights in pixels, whiskers, bars that were not measured, and the same bytes each time."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim import bar_charts
from medim.bar_charts import COLOURS, GREYS, HEIGHT, PAIR_BARS, Bar, Group, bar_chart, colours_of, draw_bars, ticks
from medim.figures import save_png
from medim.table_cells import build_table
from medim.tables import JUDGED, get_table, phantom_world

WORLD = phantom_world("phantom")


def model(values: dict) -> dict:
    entries = {key: {"value": value, "low": value, "high": value, "n": 9} for key, value in values.items()}
    return {"rows": {"row": entries}}


def pixels(page, colour) -> np.ndarray:
    return (np.asarray(page) == colour).all(-1)


@given(st.floats(1e-6, 1e6))
@settings(deadline=None)
def test_ticks_are_round_and_reach_the_largest(largest):
    found = ticks(largest)
    step = found[1]
    assert found[0] == 0 and found[-1] >= largest * (1 - 1e-6) and found[-2] < largest and len(found) <= 7
    assert any(math.isclose(step / 10 ** math.floor(math.log10(step) + 1e-9), unit) for unit in (1, 2, 2.5, 5))


def test_heights_are_in_proportion_and_begin_at_zero():
    page = draw_bars("t", ["a", "b"], COLOURS[:2], [Group("g", (Bar(1.0, None, None), Bar(0.25, None, None)))])
    tall, low = (pixels(page, colour)[bar_charts.MARGIN + 50 :] for colour in COLOURS[:2])
    tall, low = (np.flatnonzero(found.any(1)) for found in (tall, low))
    assert (len(tall), len(low)) == (HEIGHT, HEIGHT // 4) and tall[-1] == low[-1]


def test_an_interval_is_a_whisker_and_what_was_not_measured_is_no_bar():
    bars = (Bar(0.5, 0.25, 1.0), Bar(None, None, None))
    page = draw_bars("", ["a", "b"], COLOURS[:2], [Group("", bars)])
    column = bar_charts.LEFT + 13 + (bar_charts.NARROWEST - 39) // 2 + 9
    rows = np.flatnonzero(pixels(page, bar_charts.BLACK)[:, column])
    assert len(rows) == round(0.75 * HEIGHT) + 1
    assert pixels(page, COLOURS[1]).sum() == 100  # the square of the legend alone
    with pytest.raises(ValueError, match=">= 0"):
        draw_bars("", ["a"], COLOURS[:1], [Group("", (Bar(-0.5, None, None),))])


def test_a_chart_shows_the_measured_rows_of_its_table(tmp_path):
    keys = [f"phantom_cxr/image_to_report/{name}" for name in bar_charts.REPORT_BARS]
    trivial = {f"trivial: {name}": model(dict.fromkeys(keys, 0.2))["rows"]["row"]
               for name in ("constant", "random training pair", "nearest neighbour")}  # fmt: skip
    metrics = {
        "r2gen_real": model(dict.fromkeys(keys, 0.4)), "r2gen_real_medim": model(dict.fromkeys(keys, 0.5)),
        "trivial": {"rows": trivial},
    }  # fmt: skip
    page = bar_chart(build_table(get_table("figure5b"), metrics, WORLD))
    shown = [pixels(page, colour).sum() > 100 for colour in (*COLOURS[:3], *GREYS)]
    assert shown == [True, True, False, True, True, True]
    save_png(page, tmp_path / "a.png")
    save_png(bar_chart(build_table(get_table("figure5b"), metrics, WORLD)), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert bar_chart(build_table(get_table("figure5b"), {"trivial": {"rows": trivial}}, WORLD)) is None
    with pytest.raises(KeyError, match="no chart of 'table1'"):
        bar_chart(build_table(get_table("table1"), {}, WORLD))


def test_figure5a_shows_the_judge_of_both_domains():
    keys = [f"{name}/joint/{metric}" for name in ("phantom_cxr", "phantom_pathology") for metric in PAIR_BARS]
    metrics = {
        "medim": {"rows": {"MeDiM": model(dict.fromkeys(keys, 0.9))["rows"]["row"]}},
        "unidisc": model(dict.fromkeys(keys, 0.6)),
    }
    for world, shown in ((WORLD, set(PAIR_BARS) - set(JUDGED)), (replace(WORLD, drawn=False), set(PAIR_BARS))):
        page = bar_chart(build_table(get_table("figure5a"), metrics, world))
        floors = [pixels(page, colour)[-60:].any(0).astype(int) for colour in COLOURS[:2]]  # below the legend
        assert [int((np.diff(there) == 1).sum()) for there in floors] == [2 * len(shown)] * 2


def test_colours_tell_trivial_rules_apart():
    names = ["real only", "trivial: constant", "real + MeDiM", "trivial: nearest neighbour"]
    assert colours_of(names) == [COLOURS[0], GREYS[0], COLOURS[1], GREYS[1]]
