"""The rules agree with labelled reports as far as they once did; skipped where the labelled reports are not."""

import csv

import pytest

from benchmarks.label_agreement import (
    COMPARED,
    DATA,
    chexpert_cells,
    main,
    openi_agreement,
    openi_reports,
    seconds_for,
)
from medim.metrics.chest_phrases import LABELS

LEAST = {"Atelectasis": 0.85, "Cardiomegaly": 0.85, "Pleural Effusion": 0.85, "Pneumothorax": 0.85, "Edema": 0.60,
         "Pneumonia": 0.39}  # fmt: skip
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the labelled reports are not here")


@needs_data
def test_the_sample_of_the_chexpert_labeler():
    equal, cells = chexpert_cells(DATA)
    assert cells == 56 and equal >= 54


@needs_data
def test_the_reports_of_open_i():
    found = openi_agreement(DATA, uncertain=False)
    assert {label: round(found[label].f1, 2) for label in LEAST if found[label].f1 < LEAST[label]} == {}


@needs_data
def test_five_thousand_reports_take_seconds():
    assert seconds_for(list(openi_reports(DATA).values()), 500) < 3


@pytest.fixture
def tiny(tmp_path):
    """Files of the same layout, written here."""
    for folder in ("chexpert_labeler", "iu_labels", "iu_kaggle"):
        (tmp_path / folder).mkdir()
    with (tmp_path / "chexpert_labeler/labeled_reports.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Reports", *LABELS])
        cells = {"Cardiomegaly": "1.0", "Edema": "0.0", "Fracture": "1.0"}
        writer.writerow(["The heart is enlarged.\n\nNo edema.", *(cells.get(label, "") for label in LABELS)])
    columns = [column for names in COMPARED.values() for column in names]
    with (tmp_path / "iu_labels/openi_gld_std14.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", *columns])
        writer.writerow(["CXR1", *("1" if column == "Edema" else "0" for column in columns)])
        writer.writerow(["CXR2", *("1" if column == "Nodule" else "0" for column in columns)])
        writer.writerow(["CXR9", *("0" for _ in columns)])
    with (tmp_path / "iu_kaggle/indiana_reports.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"])
        writer.writerow([1, "", "", "", "", "", "Pulmonary edema.", "Possible pneumonia."])
        writer.writerow([2, "", "", "", "", "", "", "No edema."])
    return tmp_path


def test_what_is_counted(tiny):
    assert chexpert_cells(tiny) == (13, 14), "the fracture of the table stands in no report"
    sure, hedged = (openi_agreement(tiny, uncertain) for uncertain in (False, True))
    assert (sure["Edema"].true, sure["Edema"].f1) == (1, 1.0)
    assert (sure["Lung Lesion"].true, sure["Lung Lesion"].recall, sure["Lung Lesion"].f1) == (1, 0.0, 0.0)
    assert sure["Pneumonia"].precision == 0.0 == hedged["Pneumonia"].precision and hedged["Pneumonia"].true == 0


def test_the_page_is_printed(tiny, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["label_agreement", "--data", str(tiny)])
    assert main() == 0
    assert "13 of 14 cells" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["label_agreement", "--data", str(tiny / "none")])
    assert main() == 1 and "is missing" in capsys.readouterr().out
