"""Every sentence here was written for this test; its labels are what a radiologist would say it says."""

import time

import numpy as np
import pytest

from medim.metrics.chest_labels import (
    NEGATIVE,
    POSITIVE,
    UNCERTAIN,
    UNMENTIONED,
    label_report,
    label_reports,
    split_clauses,
)
from medim.metrics.chest_phrases import DEVICES, HINTS, LABELS, NAMES, NO_FINDING, PARTS

SHORT = {
    "nof": NO_FINDING, "med": "Enlarged Cardiomediastinum", "car": "Cardiomegaly", "les": "Lung Lesion",
    "opa": "Lung Opacity", "ede": "Edema", "con": "Consolidation", "pne": "Pneumonia", "ate": "Atelectasis",
    "ptx": "Pneumothorax", "eff": "Pleural Effusion", "ple": "Pleural Other", "fra": "Fracture", "dev": DEVICES,
}  # fmt: skip
SIGNS = {"+": POSITIVE, "-": NEGATIVE, "?": UNCERTAIN}


def said(report: str) -> str:
    """What is labelled, without "No Finding": "ede- pne?"."""
    signs = {value: sign for sign, value in SIGNS.items()}
    row = label_report(report)
    return " ".join(f"{short}{signs[row[label]]}" for short, label in SHORT.items()
                    if row[label] is not None and short != "nof")  # fmt: skip


@pytest.mark.parametrize(
    ("report", "labels"),
    [
        ("Small right pleural effusion with adjacent atelectasis.", "ate+ eff+"),
        ("No pleural effusion or pneumothorax.", "ptx- eff-"),
        ("No focal consolidation, pneumothorax, or large pleural effusion is seen.", "con- ptx- eff-"),
        ("No pneumothorax, small left effusion.", "ptx- eff+"),
        ("No pneumothorax and bibasilar atelectasis.", "ate+ ptx-"),
        ("No acute fracture, small effusion or pneumothorax.", "ptx- eff- fra-"),
        ("Pneumothorax is not seen.", "ptx-"),
        ("Consolidation, effusion and pneumothorax are not identified.", "con- ptx- eff-"),
        ("The lungs are free of consolidation and effusion.", "con- eff-"),
        ("Negative for pneumonia, effusion, or pneumothorax.", "pne- ptx- eff-"),
        ("There is cardiomegaly without overt pulmonary edema.", "car+ ede-"),
        ("No pneumothorax. There is a nodule.", "les+ ptx-"),
        ("There is no pneumothorax but there is a large effusion.", "ptx- eff+"),
        ("No change in the moderate left pneumothorax.", "ptx+"),
        ("The effusion has not significantly changed.", "eff+"),
        ("The left effusion has resolved.", "eff-"),
        ("Nearly complete resolution of the effusion.", "eff+"),
        ("Left basal consolidation, no longer seen.", "con-"),
        ("No new consolidation.", "con-"),
        ("No acute disease other than a small effusion.", "eff+"),
        ("Fracture is unlikely.", "fra-"),
    ],
)
def test_denials(report, labels):
    assert said(report) == labels


@pytest.mark.parametrize(
    ("report", "labels"),
    [
        ("Patchy opacity, which may represent atelectasis or pneumonia.", "opa+ pne? ate?"),
        ("Possible small effusion.", "eff?"),
        ("Pneumonia cannot be excluded.", "pne?"),
        ("Cannot exclude early pneumonia.", "pne?"),
        ("Small effusion is possible.", "eff?"),
        ("The opacity is likely atelectasis.", "opa+ ate?"),
        ("Findings are suspicious for pneumonia.", "pne?"),
        ("No opacity to suggest pneumonia.", "opa- pne-"),
        ("No findings suspicious for malignancy.", "les-"),
        ("No effusion, possible basilar atelectasis.", "ate? eff-"),
        ("Basilar atelectasis versus infiltrate.", "opa? ate?"),
        ("Atelectasis vs. consolidation at the left base.", "con? ate?"),
        ("Opacity most consistent with pneumonia.", "opa+ pne+"),
        ("Possible edema, small left effusion.", "ede? eff+"),
        ("Pulmonary vascular congestion.", "ede?"),
        ("Blunting of the left costophrenic angle.", "eff?"),
        ("No pulmonary vascular congestion.", "ede-"),
        ("Rule out pneumonia.", "pne?"),
        ("Question left basilar atelectasis.", "ate?"),
    ],
)
def test_hedges_and_signs(report, labels):
    assert said(report) == labels


@pytest.mark.parametrize(
    ("report", "labels"),
    [
        ("Heart size is normal.", "car-"),
        ("Normal heart size.", "car-"),
        ("The heart is mildly enlarged.", "car+"),
        ("Enlarged heart with normal pulmonary vascularity.", "car+"),
        ("Stable enlargement of the cardiac silhouette.", "car+"),
        ("The heart is not significantly enlarged.", "car-"),
        ("The heart is borderline in size.", "car?"),
        ("The heart is at the upper limits of normal in size.", "car?"),
        ("Borderline cardiomegaly.", "car?"),
        ("The cardiomediastinal silhouette is within normal limits.", "med-"),
        ("Heart size and mediastinal contours are within normal limits.", "med- car-"),
        ("The mediastinum is widened.", "med+"),
        ("No mediastinal widening.", "med-"),
        ("The heart is large.", "car+"),
        ("The heart is obscured by a large effusion.", "eff+"),
        ("The mediastinum is stable and the heart is enlarged.", "car+"),
        ("No pneumothorax is seen, and the heart is enlarged.", "car+ ptx-"),
        ("Heart failure.", "ede?"),
        ("Stable cardiomediastinal silhouette.", ""),
    ],
)
def test_heart_and_mediastinum(report, labels):
    assert said(report) == labels


@pytest.mark.parametrize(
    ("report", "labels"),
    [
        ("Small pericardial effusion.", ""),
        ("No pleural or pericardial effusion.", "eff-"),
        ("Soft tissue edema of the neck.", ""),
        ("History of pneumonia.", ""),
        ("Mass effect on the trachea.", ""),
        ("CT is more sensitive for small nodules.", ""),
        ("Spiculated nodule in the right upper lobe.", "les+"),
        ("Multiple pulmonary metastases.", "les+"),
        ("Nodular opacity in the lingula.", "les+ opa+"),
        ("Right middle lobe airspace disease.", "opa+"),
        ("Biapical pleural thickening.", "ple+"),
        ("Old healed left rib fractures.", "fra+"),
        ("A right PICC ends in the superior vena cava.", "dev+"),
        ("Interval removal of the endotracheal tube.", "dev-"),
        ("Left-sided pacemaker in place.", "dev+"),
        ("Complete collapse of the right lower lobe.", "ate+"),
        ("Collapsed vertebral body.", ""),
        ("Moderate hydropneumothorax.", "ptx+ eff+"),
        ("Hyperexpanded but clear lungs.", ""),
    ],
)
def test_words(report, labels):
    assert said(report) == labels


def test_the_stronger_statement_of_a_report_counts():
    assert said("No effusion. Possible effusion.") == "eff?"
    assert said("Possible effusion. Small left effusion. No right effusion.") == "eff+"


@pytest.mark.parametrize(
    ("report", "state"),
    [
        ("The lungs are clear.", POSITIVE),
        ("No pneumothorax. Right PICC.", POSITIVE),
        ("Possible pneumonia.", None),
        ("Small effusion.", None),
        ("", None),
        ("N/A", None),
    ],
)
def test_no_finding(report, state):
    assert label_report(report)[NO_FINDING] == state


def test_clauses_survive_wrapped_lines_numbers_and_lost_blanks():
    assert split_clauses("1. Small effu-\n  sion of 1.5 cm.No edema\n\n2. Vs. prior: clear .") == [
        "1.", "small effu- sion of 1.5 cm", "no edema", "2.", "vs. prior: clear ."
    ]  # fmt: skip
    assert said("no pleural effusion . heart size is normal . small nodule .") == "car- les+ eff-"


def test_many_reports_at_once_are_labelled_as_one_by_one():
    reports = ["Small effusion.", "", "No edema. Small effusion.", "Small effusion."]
    table = label_reports(reports)
    assert table.shape == (4, 14) and table.dtype == np.int8
    alone = [[UNMENTIONED if state is None else state for state in label_report(one).values()] for one in reports]
    assert np.array_equal(table, alone)
    assert label_reports([]).shape == (0, 14)


def test_every_finding_has_words():
    assert set(NAMES) == set(LABELS) - {NO_FINDING}
    assert set(HINTS) | set(PARTS) <= set(NAMES)


def test_a_thousand_reports_that_share_no_sentence_take_seconds():
    texts = [
        f"Study {number}: heart size is {number % 7} cm, normal. No focal consolidation, effusion or pneumothorax in "
        f"zone {number}. Opacity {number} may represent atelectasis or scarring. Stable right PICC, tip {number}."
        for number in range(1000)
    ]
    started = time.process_time()
    label_reports(texts)
    assert time.process_time() - started < 6
