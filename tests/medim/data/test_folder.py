import csv
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from medim.data.folder import MAX_FIELD, FolderSource, draw_splits, import_folder, read_table
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
    assert stats.quarantined == [("tiles/D", "unknown split 'nonsense'")]
    assert not stats.unnamed


def table_of(root: Path, rows: list[tuple[str, str]]) -> FolderSource:
    (root / "t.json").write_text(json.dumps([{"file": file, "note": "Clear.", "who": who} for file, who in rows]))
    return replace(
        BASE, root=str(root), table="t.json", image_column="file", image_folder="images", report_column="note",
        patient_column="who", val=0, test=0,
    )  # fmt: skip


def test_pictures_that_no_row_names_are_said(tmp_path, capsys):
    for name in ("a.png", "b.png", "u.png", "deep/v.JPG", "slide/x.png", "slide/deep/y.png", "other.png", "../out.png"):
        picture(tmp_path / "images" / name, 40)
    (tmp_path / "images" / "notes.md").write_text("no picture")
    rows = [("a.png", "p"), ("./deep/../b.png", ""), ("slide", "p"), ("", "p"), ("gone.png", "p"), ("\0", "p")]
    _, stats, _ = run(table_of(tmp_path, rows))
    assert stats.unnamed == ["deep/v.JPG", "other.png", "u.png"]
    assert capsys.readouterr().out.splitlines() == [
        f"mine: 3 pictures under {tmp_path}/images are named by no row of t.json (first: deep/v.JPG, other.png, u.png)"
    ]
    with pytest.raises(ValueError, match="holds no usable pair"):
        run(table_of(tmp_path, [("a", "p")]))
    assert "mine: 7 pictures under" in capsys.readouterr().out, "a table that names nothing must be said too"


def test_rejected_rows_and_pictures_are_labelled_alike(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "images" / name, 40)
    _, stats, _ = run(table_of(tmp_path, [("a.png", "p"), ("b.png", ""), ("gone.png", "p")]))
    assert stats.quarantined == [("images/b.png", "no patient"), ("images/gone.png", "file is missing")]


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("file,note\na.png,hello\n")
    source = replace(BASE, root=str(tmp_path), table="t.csv", image_column="image", report_column="note")
    with pytest.raises(KeyError, match="no column 'image'"):
        run(source)


LINE_ENDS = "one\u2028two\u0085three\x0cfour"  # where str.splitlines cuts and a table does not


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_only_line_ends_end_a_row(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    line = json.dumps({"file": "a", "note": LINE_ENDS}, ensure_ascii=False) + "\r\n"
    text = f'file,note\r\na,{LINE_ENDS}\r\nb,"two\nlines"\r\n' if suffix == "csv" else line + "\r\n" + line
    path.write_bytes(text.encode())
    rows, _ = read_table(path)
    assert len(rows) == 2 and rows[0] == {"file": "a", "note": LINE_ENDS}
    assert suffix != "csv" or rows[1]["note"] == "two\nlines"


def test_an_unreadable_line_is_named(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(ValueError, match=r"t\.jsonl line 3 .*not JSON"):
        read_table(tmp_path / "t.jsonl")
    (tmp_path / "t.json").write_text('[{"a": 1},\n{"a"}]')
    with pytest.raises(ValueError, match=r"t\.json line 2 .*not JSON"):
        read_table(tmp_path / "t.json")
    (tmp_path / "o.jsonl").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(ValueError, match=r"o\.jsonl row 2 must be an object, got list"):
        read_table(tmp_path / "o.jsonl")


def test_long_cells_are_read_and_endless_ones_named(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "long.csv").write_text("a,b\n1," + "x" * 200_000)
    assert len(read_table(tmp_path / "long.csv")[0][0]["b"]) == 200_000
    (tmp_path / "endless.csv").write_text('a,b\n1,2\n3,"' + "x\n" * (MAX_FIELD // 2 + 1))
    with pytest.raises(ValueError, match=r"endless\.csv line 3: .*field larger than field limit"):
        read_table(tmp_path / "endless.csv")
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("nobody", ["", "  ", None, float("nan")])
def test_a_row_without_a_patient_is_quarantined(tmp_path, nobody):
    rows = [{"file": f"{n}.png", "note": "Clear.", "who": who} for n, who in enumerate([nobody, nobody, 0, "p"])]
    for number in range(4):
        picture(tmp_path / f"{number}.png", 40 + number)
    (tmp_path / "t.json").write_text(json.dumps(rows))
    source = replace(
        BASE, root=str(tmp_path), table="t.json", image_column="file", report_column="note", patient_column="who",
        val=0, test=0,
    )  # fmt: skip
    found, stats, _ = run(source)
    assert stats.quarantined == [("0.png", "no patient"), ("1.png", "no patient")]
    assert [pair.patient_id for pair in found["train"]] == ["0", "p"]


def test_no_file_beside_a_text_is_lost(tmp_path):
    for name in ("a.png", "b.jfif", "c.jp2", "d.PGM"):
        picture(tmp_path / name, 40)
    (tmp_path / "e.heic").write_bytes(b"pixels")
    (tmp_path / "notes.md").write_text("no item")
    for stem in "abcdef":
        (tmp_path / f"{stem}.txt").write_text("A report.")
    found, stats, _ = run(replace(BASE, root=str(tmp_path), val=0, test=0))
    assert [pair.source for pair in found["train"]] == ["a.png", "b.jfif", "c.jp2", "d.PGM"]
    assert stats.quarantined == [("e.heic", "not a known picture format"), ("f.txt", "no picture beside it")]


def test_the_text_beside_a_picture_may_have_a_suffix_of_any_case(tmp_path):
    for name in ("UP.JPG", "b.png"):
        picture(tmp_path / name, 40)
    for name in ("UP.TXT", "b.Txt", "b.txt"):
        (tmp_path / name).write_text(f"Report {name}.")
    found, stats, _ = run(replace(BASE, root=str(tmp_path), val=0, test=0))
    assert {pair.source: pair.report for pair in found["train"]} == {
        "UP.JPG": "Report UP.TXT.",
        "b.png": "Report b.txt.",
    }
    assert stats.quarantined == [("b.Txt", "b.txt is read instead")]


def beside_texts(root: Path, count: int) -> FolderSource:
    for number in range(count):
        picture(root / f"p{number}.png", number * 20)
        (root / f"p{number}.txt").write_text(f"Report {number}.")
    return replace(BASE, root=str(root))


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.9, 0.4), (1.0, 0.0), (-0.1, 0.2), (0.2, -0.1)])
def test_impossible_shares_are_refused(tmp_path, val, test):
    source = replace(beside_texts(tmp_path, 4), val=val, test=test)
    with pytest.raises(ValueError, match=rf"mine: .*val {val} and test {test} .*prepare_data\.datasets\.mine\.val"):
        run(source)


def test_an_empty_split_that_was_asked_for_is_said(tmp_path, capsys):
    source = beside_texts(tmp_path, 2)
    with pytest.raises(ValueError, match=r"mine: the split train is empty \(val 0\.5, test 0\.4"):
        run(replace(source, val=0.5, test=0.4))
    run(replace(source, val=0.0, test=0.2))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and said[0].startswith("mine: WARNING: the split test is empty (val 0.0, test 0.2")


def test_a_split_whose_pictures_are_all_broken_is_said(tmp_path, capsys):
    source = beside_texts(tmp_path, 3)
    splits = draw_splits({"p0", "p1", "p2"}, source.val, source.test, 0)
    names = {split: patient for patient, split in splits.items()}
    (tmp_path / f"{names['val']}.png").write_bytes(b"nope")
    run(source)
    assert "mine: WARNING: the split val is empty" in capsys.readouterr().out
    (tmp_path / f"{names['train']}.png").write_bytes(b"nope")
    with pytest.raises(ValueError, match="mine: the split train is empty"):
        run(source)


def test_a_prompt_with_its_own_end_is_refused(tmp_path):
    source = replace(beside_texts(tmp_path, 4), prompt="chest: frontal")
    with pytest.raises(ValueError, match=r"mine: .*':'.*'chest: frontal'.*datasets\.mine\.prompt"):
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


@pytest.mark.parametrize(("mark", "coding"), [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")])
def test_utf_16_is_read_by_its_mark(tmp_path, mark, coding):
    assert decode_report(mark + "Größe 3 cm\r\n≥ 2 nodules".encode(coding)) == ("Größe 3 cm ≥ 2 nodules", False)
    (tmp_path / "t.csv").write_bytes(mark + "file,note\r\na.png,Größe\r\n".encode(coding))
    assert read_table(tmp_path / "t.csv") == ([{"file": "a.png", "note": "Größe"}], False)


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


def test_a_row_with_too_many_cells_is_quarantined_not_cut(tmp_path):
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    (tmp_path / "t.csv").write_text("image,report,patient\na.png,Clear,p1\nb.png,No effusion, no nodule,p2\n")
    source = replace(
        BASE, root=str(tmp_path), table="t.csv", image_column="image", report_column="report", patient_column="patient",
        val=0, test=0,
    )  # fmt: skip
    found, stats, _ = run(source)
    assert [pair.report for pair in found["train"]] == ["Clear"]
    assert [(item, why.partition(":")[0]) for item, why in stats.quarantined] == [
        ("b.png", "more cells than the table has columns")
    ]
