"""Phantom histology: H&E tiles of nine organs with ten findings, each present, uncertain (small and faint) or absent.

A scene is a JSON-able dict: organ, stain and texture belong to the patient; tile, sites and findings to the study.
    {"organ", "stain", "texture", "patient", "study", "tile", "words", "named",
     "findings": {label: {"state", "strength"}}, "sites": {label: [x, y, angle, seed]}}
Every label has a site, also where it is absent, so that `change` can redraw a tile with one finding more or less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medim.data.domain import Finding, Grammar, Rendered
from medim.data.pathology_draw import EOSIN, HEMATOXYLIN, ORGANS, draw_tile
from medim.data.pathology_findings import PAINTERS
from medim.data.pathology_words import GRAMMAR, write_report
from medim.data.scene import patient_pairs, scene_truth, with_state
from medim.pairs import Pair

LABELS = tuple(PAINTERS)
STRENGTH = {"uncertain": (0.40, 0.50), "present": (0.86, 1.0)}  # do not overlap: the picture tells the two apart
COUNTS = (0.20, 0.26, 0.27, 0.19, 0.08)  # probability of 0, 1, ... findings in a study
UNCERTAIN = 0.4  # share of findings that are uncertain
NAMED = 0.4  # share of studies with a present finding whose prompt names one
TYPICAL = {  # findings more frequent in an organ, as in clinical practice
    "colon": ("mucin", "malformed glands"),
    "breast": ("calcification", "stromal fibrosis"),
    "prostate": ("malformed glands", "high cellularity"),
    "lung": ("hemorrhage", "necrosis"),
    "kidney": ("hemorrhage", "nuclear pleomorphism"),
    "liver": ("stromal fibrosis", "necrosis"),
    "stomach": ("lymphocytic infiltrate", "mucin"),
    "thyroid": ("calcification", "lymphocytic infiltrate"),
    "skin": ("mitotic figures", "nuclear pleomorphism"),
}


@lru_cache(maxsize=1)
def _layouts(count: int = 512) -> NDArray[np.float64]:
    """(count, 10, 2) sites: each layout by Mitchell's best candidate, so that its first sites lie farthest apart."""
    rng = np.random.default_rng(0)
    sites = rng.uniform(0.19, 0.81, (count, len(LABELS), 2))
    for k in range(1, len(LABELS)):
        candidates = rng.uniform(0.19, 0.81, (count, 12, 1, 2))
        nearest = ((candidates - sites[:, None, :k]) ** 2).sum(-1).min(-1)
        sites[:, k] = candidates[np.arange(count), nearest.argmax(1), 0]
    return sites


def _near(rng: np.random.Generator, vector: tuple[float, float, float]) -> list[float]:
    """A patient's own optical densities, near the mean ones."""
    return [round(float(value), 4) for value in np.asarray(vector) * rng.uniform(0.90, 1.10, 3)]


class PhantomPathology:
    """The domain `phantom_pathology` (see `medim.data.domain.Domain`)."""

    name = "phantom_pathology"
    findings = tuple(Finding(label, sided=False) for label in LABELS)
    grammar: Grammar = GRAMMAR

    def studies(self, seed: int, patient: int) -> list[dict[str, Any]]:
        """The scenes of a patient's 1-3 tiles: one organ, stain and texture."""
        rng = np.random.default_rng((seed, patient, 71))
        organ = list(ORGANS)[int(rng.integers(len(ORGANS)))]
        strength = float(rng.uniform(0.9, 1.12))
        shared = {
            "patient": patient,
            "organ": organ,
            "stain": {
                "hematoxylin": [round(value * strength, 4) for value in _near(rng, HEMATOXYLIN)],
                "eosin": _near(rng, EOSIN),
                "light": round(float(rng.uniform(238, 250)), 1),
            },
            "texture": {
                "eosin": round(float(rng.uniform(0.85, 1.15)), 3),
                "density": round(float(rng.uniform(0.85, 1.2)), 3),
                "angle": round(float(rng.uniform(0, math.pi)), 3),
            },
        }
        return [{**shared, "study": study, **_draw_study(rng, organ)} for study in range(int(rng.integers(1, 4)))]

    def render(self, scene: Mapping[str, Any], size: int, noise: bool = True) -> Rendered:
        """Draw a scene: image (S, S, 3) uint8, and masks of every pixel that a finding may have changed.

        Raises:
            ValueError: size outside 32..512.
        """
        return draw_tile(scene, PAINTERS, size, noise)

    def report(self, scene: Mapping[str, Any]) -> str:
        """12-45 words of prose, which name the organ."""
        return write_report(scene)

    def prompt(self, scene: Mapping[str, Any]) -> str:
        """'histology of the colon', and for NAMED of the studies with a present finding ', <that finding>'."""
        present = [label for label, state in self.truth(scene).items() if state == "present"]
        head = f"histology of the {scene['organ']}"
        if not present or scene["named"] >= NAMED:
            return head
        return f"{head}, {present[int(scene['named'] / NAMED * len(present))]}"

    def truth(self, scene: Mapping[str, Any]) -> dict[str, str]:
        """Findings of the scene, in the order of the labels: label -> 'uncertain' or 'present'."""
        return scene_truth(scene, LABELS)

    def change(self, scene: Mapping[str, Any], label: str, state: str) -> dict[str, Any]:
        """The same tile with one finding's state changed; the picture differs only inside that finding's mask.

        Raises:
            KeyError: no such label or state.
        """
        return with_state(scene, label, state, LABELS, STRENGTH)

    def pairs(self, seed: int, patient: int, size: int) -> Iterator[Pair]:
        """The patient's studies as pairs with scene and masks."""
        return patient_pairs(self, seed, patient, size)


def _draw_study(rng: np.random.Generator, organ: str) -> dict[str, Any]:
    """What one tile has of its own: findings, their sites, and seeds of tissue and wording."""
    weight = np.asarray([1.6 if label in TYPICAL[organ] else 1.0 for label in LABELS])
    order = np.argsort(rng.exponential(size=len(LABELS)) / weight)  # a weighted draw without replacement
    count = int(np.searchsorted(np.cumsum(COUNTS), rng.random()))
    ordered = [LABELS[k] for k in order.tolist()]
    sites = _layouts()[int(rng.integers(len(_layouts())))]
    places = np.clip(sites + rng.uniform(-0.03, 0.03, sites.shape), 0.17, 0.83).round(4).tolist()
    angles, seeds = rng.uniform(0, math.pi, len(LABELS)).round(4).tolist(), rng.integers(0, 2**31, len(LABELS)).tolist()
    findings = {}
    for label in ordered[:count]:
        state = "uncertain" if rng.random() < UNCERTAIN else "present"
        findings[label] = {"state": state, "strength": round(float(rng.uniform(*STRENGTH[state])), 3)}
    return {
        "tile": int(rng.integers(2**31)),
        "words": int(rng.integers(2**31)),
        "named": round(float(rng.random()), 4),
        "findings": findings,
        "sites": {label: [*place, a, s] for label, place, a, s in zip(ordered, places, angles, seeds, strict=True)},
    }


DOMAIN = {"phantom_pathology": PhantomPathology()}
