"""What the live process sends, without a store: each point and sheet once, again when the store was away."""

import json
import os
from pathlib import Path

import yaml

from pipeline import tracking_live
from pipeline.paths import World
from pipeline.tracking_live import Sheets, Tail, follow
from pipeline.tracking_store import Point
from pipeline.tracking_tables import training_sheets

ROOT = Path(__file__).parents[2]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def log_line(step, **values):
    return json.dumps({"step": step, "time": 1000.0 + step, **values}) + "\n"


class Flaky:
    """A store that is away for the first `failures` sendings."""

    def __init__(self, failures):
        self.failures, self.points, self.sheets, self.opened, self.ended = failures, [], [], 0, False

    def send(self, points, sheets):
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")
        self.points += points
        self.sheets += [path.read_text() for path in sheets]

    def close(self):
        self.opened += 1
        self.points, self.sheets = [], []

    def finish(self, state):
        self.ended = state


def training_with_a_sheet(world):
    """Paths of a training's curves, with one line, and of its sheet."""
    log, sheet = world.logs("train_vqgan"), world.figure("vqgan_training")
    write(log, log_line(1, a=1.0))
    write(sheet, "png 1")
    return log, sheet


def test_a_store_that_comes_back_gets_each_point_and_sheet_once_and_pauses_grow(tmp_path):
    world, store, pauses = World(tmp_path / "runs/tiny"), Flaky(3), []
    log, sheet = training_with_a_sheet(world)

    def wait(seconds):
        pauses.append(seconds)
        step = len(pauses)
        with log.open("a") as file:
            file.write(log_line(step + 1, a=2.0))
        if step == 6:
            write(sheet, "png 6")
        return step == 7

    failed = follow(Tail(log), Sheets(world, "train_vqgan"), store, wait, period=1.0, state=lambda: "KILLED")
    assert failed == 3
    assert [point.step for point in store.points] == list(range(1, 9))
    assert store.sheets == ["png 1", "png 6"]
    assert pauses == [0.0, 2.0, 4.0, 8.0, 1.0, 1.0, 1.0]
    assert store.ended == "KILLED"


def test_a_sheet_alone_is_sent_too_and_the_last_one_at_the_end(tmp_path):
    world, store, calls = World(tmp_path / "runs/tiny"), Flaky(0), []
    log, sheet = training_with_a_sheet(world)

    def wait(_seconds):
        calls.append(len(store.sheets))
        write(sheet, f"png {len(calls)}")
        return len(calls) == 3

    follow(Tail(log), Sheets(world, "train_vqgan"), store, wait, period=1.0)
    assert calls == [0, 1, 2] and store.sheets == ["png 1", "png 2", "png 3"]


def test_a_sheet_of_an_earlier_training_is_not_sent(tmp_path):
    world = World(tmp_path / "runs/tiny")
    log, sheet = training_with_a_sheet(world)
    sheets = Sheets(world, "train_vqgan")
    os.utime(sheet, (900.0, 900.0))  # the first line of the curves is of 1001 s
    assert sheets.read() == []
    os.utime(sheet, (1100.0, 1100.0))
    assert sheets.read() == [sheet] and sheets.read() == []
    log.write_text("")
    os.utime(sheet, (1200.0, 1200.0))
    assert sheets.read() == []  # not yet known when the training began
    log.unlink()
    assert sheets.read() == []


def test_sheets_are_those_of_the_training_alone(tmp_path):
    world = World(tmp_path)
    names = ("vqgan_training", "vqgan_training_late", "vqgan", "medim_training", "samples_medim/medim-all-joint")
    for name in names:
        write(world.figure(name), "png")
    assert training_sheets(world, "train_vqgan") == [world.figure(name) for name in names[:2]]
    assert training_sheets(world, "train_medim@medim") == [world.figure("medim_training")]
    assert training_sheets(world, "train_finding_reader") == []


def test_the_stage_places_its_sheet_where_it_is_looked_for(tmp_path):
    """The name stands in dvc.yaml and in the stage; neither imports the other."""
    outs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["train_vqgan"]["outs"]
    (place,) = [out.replace("${world}", "tiny") for out in outs if "figures" in out]
    world = World(tmp_path / "runs/tiny")
    write(tmp_path / place, "png")
    assert training_sheets(world, "train_vqgan") == [tmp_path / place]


def test_pauses_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_live, "LONGEST_WAIT", 3.0)
    log = tmp_path / "log.jsonl"
    write(log, log_line(1, a=1.0))
    pauses = []
    sheets = Sheets(World(tmp_path), "train_vqgan")
    follow(Tail(log), sheets, Flaky(99), lambda s: pauses.append(s) or len(pauses) == 6, period=1.0)
    assert pauses[2:] == [3.0] * 4


def test_a_tail_reads_each_point_once_whatever_happens_to_the_file(tmp_path):
    log = tmp_path / "log.jsonl"
    tail = Tail(log)
    assert tail.read() == []
    write(log, log_line(1, a=1.0) + log_line(2, a=2.0)[:-3])
    assert [point.step for point in tail.read()] == [1]
    write(log, log_line(1, a=1.0) + log_line(2, a=2.0, b=None))
    assert [point.step for point in tail.read()] == [2]
    other = tmp_path / "other"
    write(other, log_line(1, a=1.0) + log_line(3, a=3.0))
    other.replace(log)  # a resumed training removed lines
    assert tail.read() == [Point("a", 3.0, 1_003_000, 3)]
