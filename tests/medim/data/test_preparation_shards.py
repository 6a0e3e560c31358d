"""Drawn and decoded by shards: the bytes of a preparation in one process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medim.data.folder import FolderSource
from medim.data.preparation import DrawnSource, prepare_dataset
from medim.data.preparation_shards import drawn_jobs, iter_pictures, make_drawn, make_pictures, write_items

SIZE, SEED = 32, 3


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def import_source(root: Path) -> FolderSource:
    """Nine pictures beside their texts: one is no picture, one has no report; a table names one of them twice."""
    root.mkdir()
    rng = np.random.default_rng(0)
    rows = ["file,note,who"]
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(root / f"{number}.png")
        rows.append(f"{number}.png,{'' if number == 4 else f'Clear {number}.'},p{number // 2}")
    (root / "2.png").write_bytes(b"nope")
    (root / "table.csv").write_text("\n".join([*rows, "3.png,Again.,p1", "absent.png,Missing.,p4"]) + "\n")
    return FolderSource(
        root=str(root), table="table.csv", image_column="file", image_folder="", report_column="note",
        patient_column="who", patient_characters=0, split_column="", prompt="chest x-ray", background="black",
        fit="pad", val=0.2, test=0.2,
    )  # fmt: skip


def test_an_import_whose_pictures_were_decoded_by_shards(tmp_path, capsys):
    source = import_source(tmp_path / "in")
    counts = prepare_dataset("mine", source, SIZE, SEED, tmp_path / "whole")
    said = capsys.readouterr().out
    items = tmp_path / "items.parquet"
    assert write_items("mine", source, SEED, items) == 9  # neither the one without a report nor the one named again
    decode = make_pictures(size=SIZE, background=source.background, fit=source.fit)
    parts, unusable = [], 0
    for start in range(0, 9, 4):
        parts.append(tmp_path / f"{start}.parquet")
        unusable += decode(items, parts[-1], start=start, stop=start + 4)["unusable"]
    assert unusable == 2
    found = prepare_dataset("mine", source, SIZE, SEED, tmp_path / "shards", iter_pictures(parts))
    assert found == counts and files(tmp_path / "shards") == files(tmp_path / "whole")
    assert capsys.readouterr().out == said
    with pytest.raises(ValueError, match="was not decoded: the source changed"):
        prepare_dataset("mine", source, SIZE, SEED, tmp_path / "short", iter_pictures(parts[:1]))


def test_what_an_import_would_refuse_is_refused_before_anything_is_decoded(tmp_path):
    source = import_source(tmp_path / "in")
    with pytest.raises(ValueError, match="shares val"):
        write_items("mine", replace(source, val=0.9), SEED, tmp_path / "items.parquet")
    with pytest.raises(KeyError, match="no column 'text'"):
        write_items("mine", replace(source, report_column="text"), SEED, tmp_path / "items.parquet")


def test_drawn_splits_are_found_in_place(tmp_path):
    source = DrawnSource(train=3, val=1, test=0)
    prepare_dataset("drawings", source, SIZE, SEED, tmp_path / "whole")
    draw = make_drawn(size=SIZE, seed=SEED)
    for marker, target, arguments in drawn_jobs("drawings", source, tmp_path / "none", tmp_path / "shards"):
        assert draw(marker, target, **arguments) == {"pairs": arguments["count"]}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert prepare_dataset("drawings", source, SIZE, SEED, tmp_path / "shards") == {"train": 3, "val": 1, "test": 0}
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert files(tmp_path / "shards") == files(tmp_path / "whole")
