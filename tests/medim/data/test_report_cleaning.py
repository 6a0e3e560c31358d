import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medim.data.report_cleaning import clean_report, r2gen_clean


def published(report: str) -> str:
    """What the page says that R2Gen does to an IU-Xray report, step by step."""
    for _ in range(3):
        report = report.replace("..", ".")
    for old, new in [("1. ", ""), *((f". {n}. ", ". ") for n in "2345"), *((f" {n}. ", ". ") for n in "2345")]:
        report = report.replace(old, new)
    sentences = []
    for sentence in report.strip().lower().split(". "):
        for quote in "\"/\\'":
            sentence = sentence.replace(quote, "")
        sentences.append(re.sub(r"[.,?;*!%^&_+():-\[\]{}]", "", sentence.strip()))
    return " . ".join(sentences) + " ."


@given(st.text("aB1235.. ,-/'\"()[]:%_", min_size=1, max_size=60))
@example("1. Left effusion. 2. No edema.. 3. Clear.")
@example("A (small) mass, 1.5 cm; x-ray.")
def test_it_is_r2gens_cleaning(text):
    line = " ".join(text.split())
    if line and "." * 9 not in line:
        assert r2gen_clean(line) == published(line)


@pytest.mark.parametrize(
    ("report", "cleaned"),
    [
        ("The heart is normal. No effusion.", "the heart is normal . no effusion ."),
        ("A 1.5 cm nodule.", "a 15 cm nodule ."),
        ("Grade 2/3 changes.", "grade 23 changes ."),
        ("Fracture of C1. No pneumothorax.", "fracture of cno pneumothorax ."),
        ("Small effusion.No edema.", "small effusionno edema ."),
        ("", ""),
    ],
)
def test_what_r2gen_does_to_measurements(report, cleaned):
    assert clean_report(report, "r2gen") == cleaned


def test_plain_keeps_every_word():
    assert clean_report("A 1.5 cm\r\n nodule,  XXXX.", "plain") == "A 1.5 cm nodule, XXXX."
    with pytest.raises(ValueError, match="plain, r2gen, got 'rough'"):
        clean_report("x", "rough")
