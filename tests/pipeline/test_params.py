from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.params import changed, read_section
from pipeline.params_file import ParamsError


@dataclass(frozen=True)
class Inner:
    rate: float
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Circle:
    radius: float

    def __post_init__(self):
        if self.radius < 0:
            raise ValueError(f"radius must be >= 0, got {self.radius}")


@dataclass(frozen=True)
class Square:
    side: float


@dataclass(frozen=True)
class Section:
    inner: Inner
    shapes: Mapping[str, Circle | Square]
    weights: str | None


TEXT = """
part:
  inner: {rate: 1e-3, sizes: [1, 2]}
  shapes: {a: {radius: 2}, b: {side: 3.5}}
  weights: null
"""


def read(tmp_path: Path, text: str) -> Section:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return read_section("part", Section, path)


def test_a_section_becomes_its_dataclass(tmp_path):
    assert read(tmp_path, TEXT) == Section(Inner(0.001, (1, 2)), {"a": Circle(2.0), "b": Square(3.5)}, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate:", "rat:", r"nothing reads \['inner.rat'\] \(did you mean 'rate'\?\); not set: \['inner.rate'\]"),
        ("  weights: null", "", r"not set: \['weights'\]"),
        ("sizes: [1, 2]", "sizes: [1, two]", "sizes"),
        ("rate: 1e-3", "rate: fast", "rate"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, old, new, message):
    with pytest.raises(ParamsError, match=message):
        read(tmp_path, TEXT.replace(old, new))


def test_a_variant_changes_nested_values_and_leaves_the_rest(tmp_path):
    section = read(tmp_path, TEXT)
    assert changed(section, {"inner": {"rate": 2.0}, "weights": "w"}, "x") == Section(
        Inner(2.0, (1, 2)), section.shapes, "w"
    )
    assert changed(section, {}, "x") == section
    with pytest.raises(ParamsError, match=r"x.inner: nothing reads 'rat' \(did you mean 'rate'\?\)"):
        changed(section, {"inner": {"rat": 2.0}}, "x")


def test_a_part_of_a_section_is_read_by_its_dotted_place(tmp_path):
    read(tmp_path, TEXT)
    assert read_section("part.inner", Inner, tmp_path / "params.yaml") == Inner(0.001, (1, 2))
    with pytest.raises(ParamsError, match=r"no section 'part.iner' \(did you mean 'inner'\?\)"):
        read_section("part.iner", Inner, tmp_path / "params.yaml")


def test_a_value_that_a_dataclass_refuses_is_named_with_its_place(tmp_path):
    with pytest.raises(ParamsError, match=r"params.yaml:part.shapes.a: radius must be >= 0, got -2"):
        read(tmp_path, TEXT.replace("radius: 2", "radius: -2"))


def test_changes_are_checked_like_a_section(tmp_path):
    section = read(tmp_path, TEXT)
    with pytest.raises(ParamsError, match=r"params.yaml:x.inner: rate: .*'fast'"):
        changed(section, {"inner": {"rate": "fast"}}, "x")
    with pytest.raises(ParamsError, match=r"params.yaml:x: radius must be >= 0, got -1"):
        changed(Circle(1.0), {"radius": -1.0}, "x")
