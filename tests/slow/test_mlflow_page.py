"""MLflow's UI in Chromium shows every table, curves and sample sheets, and shows them again after a deletion."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from browser import (
    browser_page,
    chromium_path,
    eventually,
    group_lives,
    mlflow_pages,
    table_in,
    wait_for_curve,
    wait_for_picture,
)
from PIL import Image

from medim.table_cells import build_table
from medim.table_render import column_names, render_csv, render_html, render_markdown, row_names
from medim.tables import TABLES, phantom_world
from pipeline.paths import World
from pipeline.tracking_tables import column_keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"^tiny/(\S+)\s+(recorded|unchanged)\s+(http://127\.0\.0\.1:5000/#/\S+)$", re.MULTILINE)
SIZE = [480, 320]
WIDE, HIGH = 14000, 1400  # MLflow puts only those columns into the page that the window has room for
NOT_TRAINED = ("liquid", "mmada", "sdm", "pixcell")  # rows of these models stay "not measured"
INSTANCE = "train_vqgan"


def made_up_metrics(world):
    """Model -> metrics/<model>.json with a number for every key that a table asks of a row."""
    metrics = {}
    for table in TABLES:
        for row in table.rows:
            for source in row.sources:
                if source.model in NOT_TRAINED:
                    continue
                entry = metrics.setdefault(source.model, {"model": source.model, "rows": {}})
                cells = entry["rows"].setdefault(source.row or source.model, {})  # without a name: its only row
                for column in table.columns(world):
                    for key in column.keys:
                        value = zlib.crc32(f"{source.model}{row.name}{key}".encode()) % 1000 / 1000
                        cells[source.stored_key(key) or key] = {
                            "value": value, "low": value * 0.9, "high": value * 1.1, "n": 200,
                        }  # fmt: skip
    return metrics


def make_world(folder):
    """runs/tiny with tables, curves, costs and pictures as the stages write them."""
    world, shown = World(folder / "runs/tiny"), phantom_world("tiny")
    metrics = made_up_metrics(shown)
    for model, content in metrics.items():
        _write(world.metrics(model), json.dumps(content))
    for table in TABLES:
        built = build_table(table, metrics, shown)
        for suffix, text in {
            ".json": json.dumps(built, indent=1) + "\n", ".md": render_markdown(built),
            ".csv": render_csv(built), ".html": render_html(built),
        }.items():  # fmt: skip
            _write(world.table(table.id, suffix), text)
    for instance in (INSTANCE, "train_medim@medim", "train_baseline@unidisc"):
        lines = [
            {"step": s, "time": 1.7e9 + s, "medim/loss": 4 * math.exp(-s / 40) + 1, "val/finding_f1": 1 - 1 / s}
            for s in range(1, 121)
        ]
        _write(world.logs(instance), "".join(json.dumps(line) + "\n" for line in lines))
        costs = {"instance": instance, "seconds": 120.0, "peak_bytes": 10**9, "examples": 1920, "parameters": 111_552}
        params = {"params": {"optim": {"lr": 1e-3, "steps": 120}}, "seed": 0, "threads": 1, "code": "abc"}
        _write(world.costs(instance), json.dumps(costs | params))
    sheet = world.figure("vqgan_training")
    for path in (world.figure("samples_medim"), sheet, world.figures() / "paper/figure4.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize(SIZE).save(path)


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def world(tmp_path):
    make_world(tmp_path)
    return World(tmp_path / "runs/tiny")


def sync(folder):
    """Table -> (recorded or unchanged, link), as printed by the command that a reader types."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.tracking", "sync"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {name: (what, link) for name, what, link in LINK.findall(done.stdout)}


def expected_table(built):
    """(headings, {row: texts}) that the page of a table is to show."""
    keys = column_keys(built)
    values = {(cell["row"], cell["column"]): cell["value"] for cell in built["cells"]}
    rows = {"(the table)": ["-"] * len(keys)}
    for row in row_names(built):
        shown = [values.get((row, column)) for column in column_names(built)]
        rows[row] = ["-" if value is None else value for value in shown]
    return [keys[column] for column in column_names(built)], rows


def rounded(table):
    """Cells as numbers of four digits, since MLflow rounds."""
    headings, rows = table
    return headings, {row: [_number(text) for text in texts] for row, texts in rows.items()}


def _number(text):
    try:
        return float(f"{float(text):.4g}")
    except (TypeError, ValueError):
        return text


def assert_all_is_shown(page, pages, world, links):
    assert set(links) == {*(table.id for table in TABLES), "trainings", "figures"}
    for table in TABLES:
        page.goto(pages.here(links[table.id][1]))
        expected = rounded(expected_table(json.loads(world.table(table.id).read_text())))
        headings, rows = eventually(page, lambda page: rounded(table_in(page)), expected)
        assert headings == expected[0], table.id
        assert list(rows.items()) == list(expected[1].items()), table.id

    page.goto(pages.here(links["trainings"][1]))
    assert wait_for_curve(page, "medim/loss").count("L") > 10
    page.goto(pages.run("tiny/trainings", INSTANCE, "model-metrics"))
    assert wait_for_curve(page, "medim/loss").count("L") > 10
    assert wait_for_curve(page, "val/finding_f1").count("L") > 10

    page.goto(pages.run("tiny/trainings", INSTANCE, "artifacts"))
    page.get_by_text("figures", exact=True).first.click()
    page.get_by_text("vqgan_training.png").first.click()
    assert wait_for_picture(page, "figures/vqgan_training.png") == SIZE

    page.goto(pages.here(links["figures"][1]))
    page.get_by_text("figure4.png").first.wait_for()
    page.get_by_text("samples_medim.png").first.click()
    assert wait_for_picture(page, "samples_medim.png") == SIZE
    page.goto(pages.run("tiny/table1", "(the table)", "artifacts/table.html"))
    whole = page.frame_locator("iframe.mlflow-html-iframe").locator("table").first
    whole.wait_for(state="attached")
    assert "SDM (SFT)" in whole.inner_text() and "FID (phantom features)" in whole.inner_text()


def test_every_table_curve_and_picture_is_in_the_page_and_again_after_a_deletion(world, tmp_path):
    chromium = chromium_path()
    if chromium is None:
        pytest.skip("no Chromium on PATH (Debian: apt-get install chromium)")
    with browser_page(chromium, WIDE, HIGH) as page:
        first = sync(tmp_path)
        with mlflow_pages(tmp_path) as pages:
            assert_all_is_shown(page, pages, world, first)
        assert not group_lives(pages.group)

        (tmp_path / "mlflow/mlflow.db").unlink()
        shutil.rmtree(tmp_path / "mlflow/artifacts")
        again = sync(tmp_path)
        assert {what for what, _ in again.values()} == {"recorded"}
        with mlflow_pages(tmp_path) as pages:
            assert_all_is_shown(page, pages, world, again)
        assert not group_lives(pages.group)
