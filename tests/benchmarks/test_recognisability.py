"""The unlabelled sheet: the right pictures under the right numbers, the same bytes each time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks.recognisability import drawn, trained_datasets, write_sheet
from medim.data.splits import drawn_pairs
from medim.pairs import TableWriter, load_images, write_pairs
from medim.systems import GENERATED_SCHEMA, Sample
from pipeline.paths import World


def pictures(dataset: str, pairs) -> list[Sample]:
    """Each pair's picture has one colour, which tells dataset and pair."""
    red = {"phantom_cxr": 40, "phantom_pathology": 200}[dataset]
    return [
        Sample("MeDiM", "report_to_image", dataset, pair.pair_id, k, np.full((32, 32, 3), (red, k, 90), np.uint8),
               pair.prompt, None, 1)
        for k, pair in enumerate(pairs)
    ]  # fmt: skip


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "runs/small")
    for dataset in ("phantom_cxr", "phantom_pathology"):
        pairs = list(drawn_pairs(dataset, "test", 0, 12, 32))
        write_pairs(world.pairs(dataset, "train"), drawn_pairs(dataset, "train", 0, 2, 32))
        write_pairs(world.pairs(dataset, "test"), pairs)
        with TableWriter(world.generated_file("medim", dataset, "report_to_image"), GENERATED_SCHEMA) as writer:
            for sample in pictures(dataset, pairs):
                writer.write(sample.record())
    write_pairs(world.pairs("phantom_cxr_ood", "train"), [])
    write_pairs(world.pairs("drawings", "train"), drawn_pairs("drawings", "train", 0, 2, 32))
    write_pairs(world.pairs("drawings", "test"), [])
    return world


def test_the_key_says_which_picture_stands_where(world, tmp_path):
    sheet, key = write_sheet(world, "medim", 8, 0, tmp_path / "out")
    found = json.loads(key.read_text())
    assert (found["world"], found["model"], found["seed"]) == ("small", "medim", 0)
    entries = found["pictures"]
    assert list(entries) == [str(n + 1) for n in range(16)]
    assert sum(entry["dataset"] == "phantom_cxr" for entry in entries.values()) == 8
    page = np.asarray(Image.open(sheet))
    cell = 32 * 4 + 20
    tests = {d: [p.pair_id for p in drawn_pairs(d, "test", 0, 12, 32)] for d in ("phantom_cxr", "phantom_pathology")}
    states = {p.pair_id: p.states for d in tests for p in drawn_pairs(d, "test", 0, 12, 32)}
    starts = [y for y in range(1, page.shape[0]) if page[y, 40, 2] == 90 and page[y - 1, 40, 2] != 90]
    assert len(starts) == 4
    for number, entry in entries.items():
        row, column = divmod(int(number) - 1, 4)
        red, k, _ = page[starts[row] + 5, column * cell + 40]
        dataset = "phantom_cxr" if red == 40 else "phantom_pathology"
        assert (entry["dataset"], entry["pair_id"]) == (dataset, tests[dataset][k])
        assert entry["findings"] == states[entry["pair_id"]]


def test_true_pictures_stand_where_the_generated_ones_stood(world, tmp_path):
    sheet, key = write_sheet(world, "medim", 8, 0, tmp_path / "real", real=True)
    _, generated = write_sheet(world, "medim", 8, 0, tmp_path / "out")
    found, other = json.loads(key.read_text()), json.loads(generated.read_text())
    assert found["model"] == "real" and found["pictures"] == other["pictures"]
    page, first = np.asarray(Image.open(sheet)), found["pictures"]["1"]
    pair = next(p for p in drawn_pairs(first["dataset"], "test", 0, 12, 32) if p.pair_id == first["pair_id"])
    true = np.repeat(np.repeat(load_images([pair])[0], 4, 0), 4, 1)
    places = np.lib.stride_tricks.sliding_window_view(page[:300, :200], true.shape)[:, :, 0]
    assert any((place == true).all() for place in places[:, 10])  # below its number, behind the margin


def test_the_seed_decides(world, tmp_path):
    keys = [write_sheet(world, "medim", 4, seed, tmp_path / str(n)) for n, seed in enumerate((0, 0, 1))]
    same, again, other = ([path.read_bytes() for path in paths] for paths in keys)
    assert same == again and same[1] != other[1]


def test_only_datasets_with_training_and_test_pairs_are_asked(world):
    assert trained_datasets(world) == ["phantom_cxr", "phantom_pathology"]


def test_too_few_pictures_and_missing_files_are_said(world, tmp_path):
    with pytest.raises(ValueError, match="phantom_cxr has 12 generated pictures, --each asks for 13"):
        write_sheet(world, "medim", 13, 0, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"other/phantom_cxr/report_to_image.parquet is missing: run `dvc"):
        write_sheet(world, "other", 8, 0, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="holds no pairs: run `dvc repro prepare_data`"):
        trained_datasets(World(tmp_path / "none"))
    with pytest.raises(ValueError, match="dvc repro generate"):
        drawn({}, 8, 0)
