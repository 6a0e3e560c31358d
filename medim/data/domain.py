"""What a drawn domain offers: the contract between phantoms and everything that uses them.

A finding label is `"left effusion"` for a finding that has sides and `"cardiomegaly"` for one that has none. Its state
is one of STATES; what a report leaves out is absent. VALUE turns a state into the number that scores use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medim.pairs import Pair

STATES = ("absent", "uncertain", "present")
VALUE = {"absent": 0.0, "uncertain": 0.5, "present": 1.0}
SIDES = ("left", "right")

Findings = Mapping[str, str]  # label -> state, absent ones left out


@dataclass(frozen=True)
class Finding:
    """One finding of a domain. `sided`: it has a left and a right label."""

    name: str
    sided: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels: one, or one a side."""
        return tuple(f"{side} {self.name}" for side in SIDES) if self.sided else (self.name,)


@dataclass(frozen=True)
class Rendered:
    """A drawn scene. `image` (S, S, 3) uint8; `masks` label -> (S, S) bool for every drawn finding."""

    image: NDArray[np.uint8]
    masks: Mapping[str, NDArray[np.bool_]]


class Grammar(Protocol):
    """The language of a domain's reports: one object writes, reads and judges."""

    def read(self, report: str) -> dict[str, str]:
        """Findings that a report states, by rules that survive broken prose: label -> 'uncertain' or 'present'."""

    def is_valid(self, sentence: str) -> bool:
        """Whether the grammar can produce this sentence."""


class Domain(Protocol):
    """A phantom domain: patients, scenes, pictures and reports, all functions of a seed."""

    name: str
    findings: tuple[Finding, ...]
    grammar: Grammar

    def studies(self, seed: int, patient: int) -> list[dict[str, Any]]:
        """The scenes (JSON-able) of one patient's 1-3 studies."""

    def render(self, scene: Mapping[str, Any], size: int, noise: bool = True) -> Rendered:
        """Draw a scene at `size` pixels; `noise=False` gives the noise-free drawing. 32 <= size <= 512."""

    def report(self, scene: Mapping[str, Any]) -> str:
        """The report of a scene (its wording is drawn from the scene's own seed)."""

    def prompt(self, scene: Mapping[str, Any]) -> str:
        """Modality, then sometimes region and condition: 'chest x-ray, left lung, pneumothorax'."""

    def truth(self, scene: Mapping[str, Any]) -> dict[str, str]:
        """Findings of the scene: label -> 'uncertain' or 'present'."""

    def pairs(self, seed: int, patient: int, size: int) -> Iterator[Pair]:
        """The patient's studies as pairs."""


def labels_of(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """All labels of a domain, in order."""
    return tuple(label for finding in findings for label in finding.labels)


def without_side(label: str) -> str:
    """'left effusion' -> 'effusion'."""
    side, _, rest = label.partition(" ")
    return rest if side in SIDES else label
