"""How reports are cleaned before models see them: our own way, or R2Gen's, whose published numbers need it.

`plain`: one line of NFC text and nothing else. `r2gen`: what modules/tokenizers.py of zhjohnchan/R2Gen does to IU-Xray
and MIMIC-CXR reports. R2Gen's way destroys what it takes for numbering and for punctuation: "1.5 cm" becomes "15 cm",
"2/3" becomes "23", and the number of a sentence that ends in "1." is lost. It is there for comparisons only.
"""

from __future__ import annotations

import re

from medim.data.report_text import one_line

CLEANINGS = ("plain", "r2gen")
NUMBERED = ("2. ", "3. ", "4. ", "5. ")  # numbers of a list's items that R2Gen removes; "1. " it removes everywhere
QUOTES = re.compile(r"[\"'/\\]")
DROPPED = re.compile(r"[.,?;*!%^&_+():<=>@\[\]{}]")  # R2Gen's character class holds the range from ":" to "["


def clean_report(report: str, cleaning: str) -> str:
    """One report, cleaned.

    Raises:
        ValueError: an unknown cleaning; names those there are.
    """
    if cleaning not in CLEANINGS:
        raise ValueError(f"cleaning must be one of {', '.join(CLEANINGS)}, got {cleaning!r}")
    line = one_line(report)
    return r2gen_clean(line) if cleaning == "r2gen" else line


def r2gen_clean(line: str) -> str:
    """One line, cleaned as R2Gen does: lower case, sentences joined by " . ", with " ." at the end.

    Deviations: runs of full stops become one whatever their length (R2Gen halves them three times for IU-Xray and six
    times for MIMIC-CXR); an empty report stays empty (R2Gen makes it " .").
    """
    if not line:
        return ""
    text = re.sub(r"\.\.+", ".", line).replace("1. ", "")
    for number in NUMBERED:
        text = text.replace(f". {number}", ". ")
    for number in NUMBERED:
        text = text.replace(f" {number}", ". ")
    sentences = [without_marks(part) for part in text.strip().lower().split(". ")]
    return " . ".join(sentences) + " ."


def without_marks(sentence: str) -> str:
    """A sentence without the marks that R2Gen drops: all but hyphens."""
    return DROPPED.sub("", QUOTES.sub("", sentence).strip())
