"""MLflow's UI in Chromium shows every table, curves and sample sheets, and shows them again after a deletion."""

import json
import math
import zlib
from pathlib import Path

from PIL import Image

from medim.table_cells import build_table
from medim.table_render import render_csv, render_html, render_markdown
from medim.tables import TABLES, phantom_world
from pipeline.paths import World

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
                cells = entry["rows"].setdefault(source.row or row.name, {})
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
    for path in (world.figure("samples_medim"), world.figures() / "paper/figure4.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").resize((480, 320)).save(path)


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
