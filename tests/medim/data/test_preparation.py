import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medim.data.folder import FolderSource
from medim.data.preparation import DrawnSource, prepare_dataset
from medim.data.splits import check_patients
from medim.pairs import read_pairs


def official(root: Path, patients: dict[str, str]) -> FolderSource:
    """A table with one picture a row: split -> patient."""
    root.mkdir()
    rows = []
    for number, (split, patient) in enumerate(patients.items()):
        Image.fromarray(np.full((16, 16, 3), 40 + number, np.uint8)).save(root / f"{number}.png")
        rows.append({"file": f"{number}.png", "note": "Clear.", "who": patient, "split": split})
    (root / "t.json").write_text(json.dumps(rows))
    return FolderSource(
        root=str(root), table="t.json", image_column="file", image_folder="", report_column="note",
        patient_column="who", patient_characters=0, split_column="split", prompt="chest x-ray", background="black",
        fit="pad", val=0.0, test=0.0,
    )  # fmt: skip


def test_overlaps_of_an_official_split_are_printed(tmp_path, capsys):
    source = official(tmp_path / "in", {"train": "a", "val": "b", "test": "a"})
    counts = prepare_dataset("mine", source, 16, 0, tmp_path / "out")
    assert counts == {"train": 1, "val": 1, "test": 1}
    assert "mine: the official split has 1 patients in both test and train" in capsys.readouterr().out


def test_the_refusal_of_shared_patients_names_a_key_that_exists(tmp_path):
    source = official(tmp_path / "in", {"train": "a", "test": "a"})
    prepare_dataset("mine", source, 16, 0, tmp_path / "out")
    with pytest.raises(ValueError, match=r"datasets\.mine\.split_column$"):
        check_patients("mine", {split: tmp_path / "out" / f"{split}.parquet" for split in ("train", "test")})


def test_drawn_splits_are_kept_and_imports_run_anew(tmp_path):
    drawn = DrawnSource(train=2, val=1, test=1)
    prepare_dataset("drawings", drawn, 32, 0, tmp_path / "drawn")
    before = (tmp_path / "drawn" / "train.parquet").stat().st_mtime_ns
    prepare_dataset("drawings", drawn, 32, 0, tmp_path / "drawn")
    assert (tmp_path / "drawn" / "train.parquet").stat().st_mtime_ns == before
    prepare_dataset("mine", official(tmp_path / "one", {"train": "a"}), 16, 0, tmp_path / "out")
    prepare_dataset("mine", official(tmp_path / "two", {"train": "b"}), 16, 0, tmp_path / "out")
    assert [pair.patient_id for pair in read_pairs(tmp_path / "out" / "train.parquet")] == ["b"]
