import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from medim.data.folder import FolderSource, draw_splits, import_folder
from medim.data.report_text import decode_report, is_empty, one_line

REAL = Path(__file__).parents[3] / "../shared/realdata"
BASE = FolderSource(
    root="", table="", image_column="", image_folder="", report_column="", patient_column="", patient_characters=0,
    split_column="", prompt="chest x-ray", background="black", fit="pad", val=0.2, test=0.2,
)  # fmt: skip


def run(source: FolderSource, seed: int = 0):
    found = defaultdict(list)
    progress = []
    stats = import_folder("mine", source, 16, seed, lambda split, pair: found[split].append(pair), progress.append)
    return found, stats, progress


def picture(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), grey, np.uint8)).save(path)


def test_pictures_beside_texts(tmp_path):
    for number in range(10):
        picture(tmp_path / f"p{number}.png", number * 20)
        (tmp_path / f"p{number}.txt").write_bytes(f"﻿Report\r\nnumber {number}.".encode())
    picture(tmp_path / "alone.png", 3)
    (tmp_path / "broken.png").write_bytes(b"nope")
    (tmp_path / "broken.txt").write_text("A report.")
    (tmp_path / "p9.txt").write_text("  N/A ")
    found, stats, progress = run(replace(BASE, root=str(tmp_path)))
    assert sum(map(len, found.values())) == 9 == sum(stats.accepted.values())
    assert dict(stats.quarantined) == {
        "alone.png": "no report: alone.txt is missing",
        "broken.png": "not a picture",
        "p9.png": "the report is empty",
    }
    assert {pair.report for pairs in found.values() for pair in pairs} == {f"Report number {n}." for n in range(9)}
    assert progress == list(range(1, 12))
    stats.write_quarantine(tmp_path / "q" / "quarantine.csv")
    assert (tmp_path / "q" / "quarantine.csv").read_text().splitlines()[0] == "item,reason"


def test_a_table_with_patients_splits_and_folders(tmp_path):
    for slide in "ABCD":
        for tile in range(3):
            picture(tmp_path / "tiles" / slide / f"{tile}.png", 40 + tile)
    rows = [{"slide": s, "text": f"Slide {s}.", "case": f"{s}-123-xyz", "split": "validate"} for s in "ABC"]
    rows += [{"slide": "D", "text": "Slide D.", "case": "D-123", "split": "nonsense"}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    source = replace(
        BASE, root=str(tmp_path), table="t.json", image_column="slide", image_folder="tiles", report_column="text",
        patient_column="case", patient_characters=5,
    )  # fmt: skip
    found, _, _ = run(source)
    patients = {split: {p.patient_id for p in pairs} for split, pairs in found.items()}
    assert sum(len(v) for v in found.values()) == 12
    assert set.union(*patients.values()) == {"A-123", "B-123", "C-123", "D-123"}
    assert sum(map(len, patients.values())) == 4, "a patient stands in two splits"
    official, stats, _ = run(replace(source, split_column="split"))
    assert {split: len(pairs) for split, pairs in official.items()} == {"val": 9}
    assert stats.quarantined == [("D", "unknown split 'nonsense'")]


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("file,note\na.png,hello\n")
    source = replace(BASE, root=str(tmp_path), table="t.csv", image_column="image", report_column="note")
    with pytest.raises(KeyError, match="no column 'image'"):
        run(source)


def test_a_folder_without_a_usable_pair_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no usable pair"):
        run(replace(BASE, root=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(replace(BASE, root=str(tmp_path / "nowhere")))


def test_cp1252_is_read_and_counted(tmp_path):
    picture(tmp_path / "a.png", 9)
    (tmp_path / "a.txt").write_bytes("Größe 3 cm – unchanged".encode("cp1252"))
    found, stats, _ = run(replace(BASE, root=str(tmp_path), val=0, test=0))
    assert found["train"][0].report == "Größe 3 cm – unchanged"
    assert stats.cp1252 == 1


@given(st.text())
@example("\x1b\r0")
@example("e\u200b\u0301")
def test_one_line_has_no_line_ends_and_is_stable(text):
    line = one_line(text)
    assert line == one_line(line) and len(line.splitlines()) <= 1
    assert decode_report(line.encode())[0] == line


def test_headers_without_a_body_are_empty():
    assert is_empty("FINDINGS:") and is_empty(" n/a") and not is_empty("FINDINGS: clear.")


@given(st.sets(st.text(min_size=1, max_size=4), min_size=3, max_size=40), st.integers(0, 9))
def test_every_split_gets_a_patient_and_each_patient_one_split(patients, seed):
    splits = draw_splits(patients, 0.1, 0.1, seed)
    assert splits.keys() == patients and set(splits.values()) == {"train", "val", "test"}


@pytest.mark.skipif(not REAL.is_dir(), reason="real sample data is not here")
def test_real_chest_pictures_with_their_notes():
    source = replace(
        BASE, root=str(REAL / "covid_chestxray"), table="metadata.csv", image_column="filename", image_folder="images",
        report_column="clinical_notes", patient_column="patientid",
    )  # fmt: skip
    found, stats, _ = run(source)
    assert sum(stats.accepted.values()) + len(stats.quarantined) == 27
    assert set(found) == {"train", "val", "test"}
    assert all(pair.report for pairs in found.values() for pair in pairs)
