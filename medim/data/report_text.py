"""Reports as one clean line of text."""

from __future__ import annotations

import re
import unicodedata

EMPTY = {"", "n/a", "na", "none", "nan", "null", "-", "."}


def decode_report(data: bytes) -> tuple[str, bool]:
    """Bytes of a text file -> (one line, whether it was not UTF-8 and was read as cp1252).

    `utf-8-sig` first, so that a byte-order mark goes; then cp1252, whose unmapped bytes are dropped.
    """
    try:
        return one_line(data.decode("utf-8-sig")), False
    except UnicodeDecodeError:
        return one_line(data.decode("cp1252", errors="ignore")), True


def one_line(text: str) -> str:
    """NFC, no control or format characters, every run of white space (CR, U+0085, U+2028 too) one blank."""
    kept = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return " ".join(unicodedata.normalize("NFC", kept).split())


def is_empty(report: str) -> bool:
    """Whether a report says nothing: blank, N/A, or a header with nothing behind it ('FINDINGS:')."""
    bare = re.sub(r"^[A-Za-z ]{3,20}:\s*$", "", report.strip())
    return bare.strip().lower() in EMPTY
