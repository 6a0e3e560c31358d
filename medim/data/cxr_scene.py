"""Draws lots for phantom chest X-rays: the patient's body, and what each study has of its own, as JSON-able scenes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import permutations
from typing import Any

from medim.data.domain import SIDES, Finding

STRENGTH = {"uncertain": (0.40, 0.48), "present": (0.86, 1.0)}  # contrasts of the two states do not overlap
UNCERTAIN = 0.3  # share of findings that are uncertain
FREQUENCY = {"sided": 0.18, "central": 0.15}  # of a finding, on one side at least, before crowded ones are dropped
BOTH_SIDES = {"effusion": 0.35, "consolidation": 0.25, "nodule": 0.25, "atelectasis": 0.2}
ONE_MORE_SIDE = 0.1  # of all others
PERSISTS = 0.4  # chance that a finding, or its absence, is taken over from the study before
MOST = 6  # labels a study
ZONED = ("consolidation", "nodule", "atelectasis")  # each has a zone of its lung for itself
ZONES = [zones for zones in permutations(("upper", "mid", "lower")) if zones[2] != "upper"]


def draw_patient(rng: random.Random, patient: int) -> dict[str, Any]:
    """What all studies of a patient share: anatomy (lengths in half pictures), and where findings would sit."""
    between = rng.uniform
    anatomy = {
        "body_w": between(0.90, 1.04),
        "lung_x": between(0.41, 0.45),
        "lung_w": between(0.31, 0.36),
        "lung_h": between(0.78, 0.86),
        "lung_mu": between(0.16, 0.24),
        "dome": between(0.36, 0.48),
        "dome_step": between(0.03, 0.08),
        "mediastinum": between(0.11, 0.15),
        "heart_x": between(0.07, 0.11),
        "heart_y": between(0.24, 0.32),
        "heart_w": between(0.22, 0.26),
        "heart_h": between(0.22, 0.27),
        "bubble": between(0.0, 0.2),
        "hilum": between(0.08, 0.14),
        "hilum_y": between(-0.10, -0.02),
        "vessels": between(0, 6.28),
        "rib": between(0.06, 0.10),
        "rib_rate": between(3.6, 4.4),
        "rib_phase": between(0, 6.28),
        "rib_slope": between(0.15, 0.40),
        "clavicle": between(-0.66, -0.58),
    }
    sites = {side: _draw_side(rng) for side in SIDES}
    return {
        "patient": patient,
        "anatomy": {key: round(value, 4) for key, value in anatomy.items()},
        "sites": {
            **{f"{side} {name}": site for side in SIDES for name, site in sites[side].items()},
            "cardiomegaly": {"growth": round(between(1.42, 1.60), 3)},
            "edema": {},
            "pacemaker": {
                "side": "left" if rng.random() < 0.75 else "right",
                "x": round(between(0.44, 0.56), 3),
                "y": round(between(-0.52, -0.42), 3),
            },
            "central line": {
                "side": rng.choice(SIDES),
                "x": round(between(0.16, 0.26), 3),
                "tip": round(between(-0.05, 0.12), 3),
            },
        },
    }


def _draw_side(rng: random.Random) -> dict[str, dict[str, Any]]:
    """Sites of the sided findings of one side."""
    between = rng.uniform
    zones = rng.sample(ZONES, 1)[0]
    return {
        "effusion": {"size": rng.choice(("small", "moderate", "large"))},
        "pneumothorax": {"size": rng.choice(("small", "moderate", "large"))},
        "consolidation": {
            "place": zones[0],
            **_near(rng, 0.05, 0.04),
            "w": round(between(0.15, 0.20), 3),
            "h": round(between(0.13, 0.17), 3),
        },
        "nodule": {"place": zones[1], **_near(rng, 0.10, 0.05), "r": round(between(0.064, 0.085), 3)},
        "atelectasis": {
            "place": zones[2],
            **_near(rng, 0.03, 0.05),
            "length": round(between(0.32, 0.42), 3),
            "angle": round(between(-0.45, 0.45), 3),
        },
        "rib fracture": {"v": round(between(-0.40, 0.22), 3)},
    }


def _near(rng: random.Random, across: float, down: float) -> dict[str, float]:
    return {"x": round(rng.uniform(-across, across), 3), "y": round(rng.uniform(-down, down), 3)}


def draw_study(
    rng: random.Random, patient: Mapping[str, Any], findings: tuple[Finding, ...], before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What one study has of its own: findings, their zones, pose, texture, and seeds of noise and wording."""
    found = _draw_findings(rng, findings, before["findings"] if before else None)
    sites = dict(patient["sites"])
    for side in SIDES:
        _place(rng, side, found, sites)
    between = rng.uniform
    return {
        **patient,
        "sites": sites,
        "findings": found,
        "prior": before is not None,
        "pose": {
            "angle": round(between(-0.12, 0.12), 4),
            "x": round(between(-0.07, 0.07), 4),
            "y": round(between(-0.07, 0.07), 4),
            "scale": round(between(0.88, 1.02), 4),
            "texture": rng.randrange(1 << 20),
        },
        "marker": rng.random() < 0.5,
        "noise_seed": rng.randrange(1 << 31),
        "word_seed": rng.randrange(1 << 31),
        "named": round(rng.random(), 4),
    }


def _draw_findings(
    rng: random.Random, findings: tuple[Finding, ...], before: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for finding in findings:
        kept = [label for label in finding.labels if before and label in before]
        if before is not None and rng.random() < PERSISTS:
            labels = kept
        elif not finding.sided:
            labels = [finding.name] if rng.random() < FREQUENCY["central"] else []
        elif rng.random() < FREQUENCY["sided"]:
            both = rng.random() < BOTH_SIDES.get(finding.name, ONE_MORE_SIDE)
            labels = list(finding.labels) if both else [rng.choice(finding.labels)]
        else:
            labels = []
        alike = "uncertain" if rng.random() < UNCERTAIN else "present"
        for label in labels:
            if len(found) < MOST:
                found[label] = {"state": alike, "strength": round(rng.uniform(*STRENGTH[alike]), 3)}
    return found


def _place(rng: random.Random, side: str, found: dict[str, Any], sites: dict[str, Any]) -> None:
    """Give the zoned findings of a side a zone each that fluid and air leave free; drop those that find none."""
    taken = {"lower"} if f"{side} effusion" in found else set()
    taken |= {"upper"} if f"{side} pneumothorax" in found else set()
    labels = [f"{side} {name}" for name in ZONED]
    own = tuple(sites[label]["place"] for label in labels)

    def crowded(zones: tuple[str, ...]) -> list[str]:
        return [label for label, zone in zip(labels, zones, strict=True) if label in found and zone in taken]

    zones = min([own, *rng.sample(ZONES, len(ZONES))], key=lambda option: len(crowded(option)))
    for label in crowded(zones):
        del found[label]
    for label, zone in zip(labels, zones, strict=True):
        sites[label] = {**sites[label], "place": zone}
