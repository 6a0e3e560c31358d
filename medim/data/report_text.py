"""Reports as one clean line of text."""

from __future__ import annotations

import codecs
import re
import unicodedata

EMPTY = {"", "n/a", "na", "none", "nan", "null", "-", "."}


def decode_report(data: bytes) -> tuple[str, bool]:
    """Bytes of a text file -> (one line, whether it was read as cp1252); see `decode_text`."""
    text, cp1252 = decode_text(data)
    return one_line(text), cp1252


def decode_text(data: bytes) -> tuple[str, bool]:
    """Bytes -> (text without a byte-order mark, whether it was read as cp1252).

    UTF-16 where its byte-order mark stands, else UTF-8, else cp1252; bytes that the first and last do not map are
    dropped.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="ignore"), False
    try:
        return data.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="ignore"), True


def one_line(text: str) -> str:
    """NFC, no control or format characters, every run of white space (CR, U+0085, U+2028 too) one blank."""
    kept = "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return " ".join(unicodedata.normalize("NFC", kept).split())


def is_empty(report: str) -> bool:
    """Whether a report says nothing: blank, N/A, or a header with nothing behind it ('FINDINGS:')."""
    bare = re.sub(r"^[A-Za-z ]{3,20}:\s*$", "", report.strip())
    return bare.strip().lower() in EMPTY
