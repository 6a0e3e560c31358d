"""Reads any picture that a medical folder may hold into (S, S, 3) uint8, or says why it cannot.

A file is decoded in full: `Image.verify()` passes on truncated JPEGs, and Pillow's own tolerance fills what is missing
with grey. 16-bit pictures are scaled by percentiles (Pillow's `convert` clips them), DICOM by its own window.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".dicom", ".jfif", ".jpe", ".jp2",
    ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".apng", ".dib", ".pbm", ".pgm", ".ppm", ".pnm",
)  # fmt: skip
WINDOW = (0.5, 99.5)  # percentiles that become black and white in a 16-bit picture without a window of its own
MAX_PIXELS = 200_000_000
COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "official": (122, 116, 104)}


class UnreadableImageError(ValueError):
    """A picture that cannot be used; the message is the reason written to quarantine.csv."""


def read_picture(path: Path, size: int, background: str, fit: str) -> NDArray[np.uint8]:
    """Decode, square and resize one file.

    Args:
        path: PNG, JPEG, TIFF, BMP, GIF, WebP or DICOM.
        size: side of the result in pixels.
        background: black | white | official ((122, 116, 104), the official code's padding): what transparency shows
            and what `pad` adds.
        fit: pad | crop: how a picture becomes square (centred).

    Returns:
        (size, size, 3) uint8, LANCZOS-resized as in the official code.

    Raises:
        UnreadableImageError: with the reason.
        ValueError: unknown background or fit.
    """
    if background not in COLOURS or fit not in ("pad", "crop"):
        raise ValueError(
            f"background must be one of {sorted(COLOURS)} and fit pad or crop, got {background!r}, {fit!r}"
        )
    if not path.is_file():
        raise UnreadableImageError("file is missing")
    data = path.read_bytes()
    if not data:
        raise UnreadableImageError("file is empty")
    is_dicom = path.suffix.lower() in (".dcm", ".dicom") or data[128:132] == b"DICM"
    picture = _read_dicom(data) if is_dicom else _read_raster(data, COLOURS[background])
    return to_square(picture, size, COLOURS[background], fit)


def to_square(picture: Image.Image, size: int, colour: tuple[int, int, int], fit: str) -> NDArray[np.uint8]:
    """RGB picture -> (size, size, 3) uint8: centred on a square of `colour`, or the centred square cut out."""
    if fit == "pad":
        squared = ImageOps.pad(picture, (max(picture.size),) * 2, color=colour)
        resized = squared.resize((size, size), Image.Resampling.LANCZOS)
    else:
        resized = ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)
    return np.asarray(resized, dtype=np.uint8)


def scale_to_8_bit(values: NDArray[Any], low: float | None = None, high: float | None = None) -> NDArray[np.uint8]:
    """Grey levels -> uint8 between `low` and `high` (None: the WINDOW percentiles).

    Raises:
        UnreadableImageError: all pixels are equal, or one is NaN or infinite.
    """
    levels = values.astype(np.float64)
    if not np.isfinite(levels).all():
        raise UnreadableImageError("holds values that are not finite")
    if levels.min() == levels.max():
        raise UnreadableImageError(f"all pixels equal {levels.min():g}")
    bottom, top = np.percentile(levels, WINDOW)
    low, high = bottom if low is None else low, top if high is None else high
    if high <= low:
        low, high = float(levels.min()), float(levels.max())
    return np.asarray(np.clip((levels - low) / (high - low), 0, 1) * 255 + 0.5, dtype=np.uint8)


def _read_raster(data: bytes, colour: tuple[int, int, int]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
            if picture.width * picture.height > MAX_PIXELS:
                raise UnreadableImageError(f"{picture.width} x {picture.height} pixels are more than {MAX_PIXELS}")
            picture.load()
    except UnreadableImageError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "not a picture" if isinstance(error, UnidentifiedImageError) else f"cannot be decoded ({error})"
        raise UnreadableImageError(reason) from error
    return _to_rgb(ImageOps.exif_transpose(picture), colour)


def _to_rgb(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        return Image.fromarray(scale_to_8_bit(np.asarray(picture))).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        top = picture.convert("RGBA")
        below = Image.new("RGBA", top.size, (*colour, 255))
        return Image.alpha_composite(below, top).convert("RGB")
    return picture.convert("RGB")


def _read_dicom(data: bytes) -> Image.Image:
    try:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError as error:
        raise UnreadableImageError("DICOM needs pydicom: MEDIM_EXTRAS=dev,medical ./setup") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record = pydicom.dcmread(io.BytesIO(data))
            values = record.pixel_array
            if values.ndim == 2:
                values = apply_voi_lut(apply_modality_lut(values, record), record)
    except Exception as error:
        raise UnreadableImageError(f"DICOM cannot be decoded ({type(error).__name__}: {error})") from error
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        return Image.fromarray(np.asarray(values[..., :3], dtype=np.uint8), "RGB")
    if values.ndim != 2:
        raise UnreadableImageError(f"DICOM holds {values.shape[0]} frames, one is needed")
    windowed = "WindowCenter" in record or "VOILUTSequence" in record
    span = (float(values.min()), float(values.max())) if windowed else (None, None)
    grey = scale_to_8_bit(values, *span)
    if record.get("PhotometricInterpretation") == "MONOCHROME1":
        grey = np.asarray(255 - grey, dtype=np.uint8)
    return Image.fromarray(grey).convert("RGB")
