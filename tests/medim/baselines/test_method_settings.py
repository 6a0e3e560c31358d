"""Settings are read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from medim.baselines.method_settings import read_settings


@dataclass(frozen=True)
class Inner:
    rate: float
    name: str

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError("rate is negative")


@dataclass(frozen=True)
class Outer:
    inner: Inner
    widths: tuple[int, ...]
    shares: Mapping[str, float]
    folder: str | None
    flag: bool
    free: Any


VALUES = {
    "inner": {"rate": 1, "name": "a"}, "widths": [1, 2], "shares": {"a": 0.5}, "folder": None, "flag": True,
    "free": {"any": [1]},
}  # fmt: skip


def test_plain_values_become_dataclasses():
    found = read_settings(Outer, VALUES, "here")
    assert found == Outer(Inner(1.0, "a"), (1, 2), {"a": 0.5}, None, True, {"any": [1]})
    assert isinstance(found.inner.rate, float)
    assert read_settings(Outer, VALUES | {"folder": "x"}, "here").folder == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widthes": 1}, r"here: nothing reads \['widthes'\] \(did you mean widths\?\); not set: \[\]"),
        ({"inner": {"rate": 1}}, r"here\.inner: nothing reads \[\]; not set: \['name'\]"),
        ({"inner": {"rate": -1, "name": "a"}}, r"here\.inner: rate is negative"),
        ({"inner": 3}, r"here\.inner must be of type Mapping, got 3"),
        ({"widths": [1, "2"]}, r"here\.widths\[1\] must be of type int, got '2'"),
        ({"widths": [True]}, r"here\.widths\[0\] must be of type int, got True"),
        ({"shares": {"a": "b"}}, r"here\.shares\.a must be of type float"),
        ({"flag": 1}, r"here\.flag must be of type bool, got 1"),
        ({"folder": 3}, r"here\.folder must be of type str, got 3"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        read_settings(Outer, VALUES | change, "here")
