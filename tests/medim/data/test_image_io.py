import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medim.data.image_io import UnreadableImageError, read_picture, scale_to_8_bit

REAL = Path(__file__).parents[3] / "../shared/realdata"


def save(path: Path, picture: Image.Image, **options) -> Path:
    picture.save(path, **options)
    return path


def read(path: Path, size: int = 8, background: str = "black", fit: str = "pad"):
    return read_picture(path, size, background, fit)


def test_a_square_rgb_picture_of_the_asked_size_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(read(save(tmp_path / "a.png", Image.fromarray(pixels))), pixels)


def test_padding_is_of_the_background_and_cropping_shows_none(tmp_path):
    wide = save(tmp_path / "w.png", Image.new("RGB", (8, 4), (200, 0, 0)))
    padded = read(wide, background="white")
    assert (padded[[0, -1]] == 255).all() and (padded[3:5] == (200, 0, 0)).all()
    assert (read(wide, fit="crop") == (200, 0, 0)).all()


def test_16_bit_levels_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    out = read(save(tmp_path / "r.png", Image.fromarray(ramp)), size=64)[..., 0].astype(int)
    expected = np.clip((ramp.astype(float) - np.percentile(ramp, 0.5)) / np.ptp(np.percentile(ramp, (0.5, 99.5))), 0, 1)
    assert abs(out - expected * 255).max() <= 1
    assert (out == 255).mean() < 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    levels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    levels[3, 3] = bad
    with pytest.raises(UnreadableImageError, match="holds values that are not finite"):
        read(save(tmp_path / "f.tiff", Image.fromarray(levels)))


def test_transparency_shows_the_background(tmp_path):
    clear = save(tmp_path / "c.png", Image.new("RGBA", (8, 8), (10, 20, 30, 0)))
    assert (read(clear, background="white") == 255).all()
    assert (read(clear, background="black") == 0).all()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    picture = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    path = save(tmp_path / ("m.jpg" if mode == "CMYK" else "m.png"), picture)
    assert (read(path) >= 250).all()


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[0] = 255  # top row white
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    out = read(save(tmp_path / "e.png", Image.fromarray(pixels), exif=exif))
    assert (out[-1] == 255).all() and (out[0] == 0).all()


def test_a_truncated_jpeg_is_refused_not_filled_with_grey(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "JPEG")
    path = tmp_path / "t.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UnreadableImageError, match="cannot be decoded"):
        read(path)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"<html>404</html>", "not a picture"), (None, "missing")]
)
def test_what_is_no_picture_says_so(tmp_path, data, reason):
    path = tmp_path / "x.png"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=reason):
        read(path)


def test_a_constant_16_bit_picture_is_refused():
    with pytest.raises(UnreadableImageError, match="all pixels equal 7"):
        scale_to_8_bit(np.full((4, 4), 7, np.uint16))


def test_unknown_settings_are_named(tmp_path):
    with pytest.raises(ValueError, match="'pink'"):
        read(save(tmp_path / "a.png", Image.new("RGB", (8, 8))), background="pink")


@pytest.mark.skipif(not REAL.is_dir(), reason="real sample data is not here")
def test_real_dicoms_are_read_and_monochrome1_is_inverted():
    pydicom = pytest.importorskip("pydicom")
    outcomes = {}
    for path in sorted((REAL / "dicom").glob("*.dcm")):
        try:
            outcomes[path.name] = read_picture(path, 64, "black", "pad")
        except UnreadableImageError as error:
            outcomes[path.name] = str(error)
        record = pydicom.dcmread(path)
        if record.PhotometricInterpretation == "MONOCHROME1" and not isinstance(outcomes[path.name], str):
            raw = record.pixel_array.astype(float)
            small = np.asarray(Image.fromarray(outcomes[path.name][..., 0]).resize((8, 8)), float)
            assert small.std() > 0 and raw.std() > 0
    pictures = [o for o in outcomes.values() if not isinstance(o, str)]
    assert len(pictures) >= 1, outcomes
    assert all(p.shape == (64, 64, 3) and p.std() > 5 for p in pictures)
