"""Prints how far the rules of medim/metrics/chest_labels.py agree with labelled chest reports, and how fast they are.

    python -m benchmarks.label_agreement [--data ../shared/realdata]

Two labelled sets, neither of them ours to publish: the four sample reports of the CheXpert labeler with all 14 labels
(chexpert_labeler/labeled_reports.csv), and Open-i's reports (iu_kaggle/indiana_reports.csv) with labels that people
gave them as index terms (iu_labels/openi_gld_std14.csv). Open-i's labels are of ChestX-ray14's kind, so only those
findings are compared that both sets name; what a report merely hedges has no label there.

The rules were written with the four sample reports and with Open-i's reports of edema, pneumonia, consolidation and
pneumothorax in view: for those the numbers are of seen reports, not of held-out ones. The labels of the other findings
were not looked at before the first measurement.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medim.data.study_layouts import report_of
from medim.metrics.chest_labels import UNMENTIONED, label_reports
from medim.metrics.chest_phrases import LABELS
from medim.metrics.clinical import read_label_table
from medim.metrics.label_scores import UNCERTAIN_AS, agreement, positives

DATA = Path("../shared/realdata")
COMPARED = {  # our label -> Open-i's columns
    "Atelectasis": ("Atelectasis",), "Cardiomegaly": ("Cardiomegaly",), "Pleural Effusion": ("Effusion",),
    "Pneumothorax": ("Pneumothorax",), "Consolidation": ("Consolidation",), "Lung Lesion": ("Mass", "Nodule"),
    "Edema": ("Edema",), "Pneumonia": ("Pneumonia",), "Pleural Other": ("Pleural_Thickening",),
}  # fmt: skip
TIMED = 5000  # reports


@dataclass(frozen=True)
class Agreement:
    """Of one finding: Open-i's reports that have it, and what the rules' labels are worth against them."""

    true: int
    precision: float
    recall: float
    f1: float


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def chexpert_cells(data: Path) -> tuple[int, int]:
    """(equal cells, all cells) on the CheXpert labeler's sample, blank cells included."""
    path = data / "chexpert_labeler" / "labeled_reports.csv"
    labels, truth = read_label_table(path)
    read = label_reports([row["Reports"] for row in rows_of(path)])
    return agreement(truth, read[:, [LABELS.index(label) for label in labels]])


def openi_reports(data: Path) -> dict[str, str]:
    """Open-i's uid ("CXR1") -> findings and impression; "" where a report has neither."""
    rows = rows_of(data / "iu_kaggle" / "indiana_reports.csv")
    return {f"CXR{row['uid']}": report_of(row, "both")[0] for row in rows}


def openi_agreement(data: Path, uncertain: bool) -> dict[str, Agreement]:
    """Label -> agreement on Open-i's reports, with uncertain labels taken as positive or as negative."""
    reports = openi_reports(data)
    rows = [row for row in rows_of(data / "iu_labels" / "openi_gld_std14.csv") if row["filename"] in reports]
    read = positives(label_reports([reports[row["filename"]] for row in rows]), uncertain)
    found = {}
    for label, columns in COMPARED.items():
        true = np.array([any(row[column] == "1" for column in columns) for row in rows], dtype=np.float64)
        found[label] = _agreement(true, read[:, LABELS.index(label)])
    return found


def _agreement(true: NDArray[np.float64], said: NDArray[np.float64]) -> Agreement:
    hits = float((true * said).sum())
    shares = [hits / total if total else 0.0 for total in (said.sum(), true.sum(), (said + true).sum() / 2)]
    return Agreement(int(true.sum()), *shares)


def seconds_for(reports: list[str], count: int) -> float:
    """Seconds of the processor to label `count` reports: the given ones over and over, each made different."""
    many = [f"{reports[number % len(reports)]} Study {number}." for number in range(count)]
    started = time.process_time()
    labels = label_reports(many)
    spent = time.process_time() - started
    assert (labels != UNMENTIONED).any(axis=1).all()
    return spent


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    data: Path = parser.parse_args().data
    if not data.is_dir():
        print(f"{data} is missing: give the folder with chexpert_labeler, iu_labels and iu_kaggle as --data")
        return 1
    equal, cells = chexpert_cells(data)
    print(f"CheXpert labeler's sample: {equal} of {cells} cells\n")
    for way, uncertain in UNCERTAIN_AS.items():
        print(f"Open-i, {way}\n| label | reports | precision | recall | F1 |\n|---|---|---|---|---|")
        for label, one in openi_agreement(data, uncertain).items():
            print(f"| {label} | {one.true} | {one.precision:.2f} | {one.recall:.2f} | {one.f1:.2f} |")
        print()
    print(f"{TIMED} reports in {seconds_for(list(openi_reports(data).values()), TIMED):.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
