"""What every scene has in common: findings by label with state and strength, one of them changed, a scene as a pair.

A scene is a JSON-able dict with at least {"patient", "study", "findings": {label: {"state", "strength"}}}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medim.data.domain import Domain, Finding, Grammar
from medim.pairs import Pair, encode_masks, encode_png

Scene = Mapping[str, Any]
Strengths = Mapping[str, tuple[float, float]]  # state -> range of strengths


def scene_truth(scene: Scene, labels: Sequence[str]) -> dict[str, str]:
    """Findings of the scene, in the order of the labels: label -> 'uncertain' or 'present'."""
    return {label: scene["findings"][label]["state"] for label in labels if label in scene["findings"]}


def with_state(scene: Scene, label: str, state: str, labels: Sequence[str], strengths: Strengths) -> dict[str, Any]:
    """The same study with one finding absent, or in a state at the middle of its range of strengths.

    Raises:
        KeyError: no such label or state.
    """
    if label not in labels or state not in ("absent", *strengths):
        raise KeyError(f"no finding {label!r} in state {state!r}; labels: {', '.join(labels)}")
    findings = {key: value for key, value in scene["findings"].items() if key != label}
    if state != "absent":
        findings[label] = {"state": state, "strength": round(sum(strengths[state]) / 2, 3)}
    return {**scene, "findings": findings}


class Captioned:
    """What drawn pictures without findings share (`drawings`, `marks`): the rest of `medim.data.domain.Domain`."""

    name: str
    kind: str  # the prompt
    findings: tuple[Finding, ...] = ()
    grammar: Grammar

    def prompt(self, scene: Scene) -> str:
        """The same word for all."""
        return self.kind

    def truth(self, scene: Scene) -> dict[str, str]:
        """{}: there are no findings."""
        return {}

    def pairs(self: Domain, seed: int, patient: int, size: int) -> Iterator[Pair]:
        """The picture as a pair; one "patient" is one picture."""
        return patient_pairs(self, seed, patient, size)


def patient_pairs(domain: Domain, seed: int, patient: int, size: int) -> Iterator[Pair]:
    """A patient's studies as pairs with scene and masks."""
    for scene in domain.studies(seed, patient):
        drawn = domain.render(scene, size)
        pair_id = f"{domain.name}-{patient:07d}-{scene['study']}"
        yield Pair(
            pair_id=pair_id,
            study_id=pair_id,
            patient_id=f"{domain.name}-{patient:07d}",
            dataset=domain.name,
            source=f"{domain.name} seed {seed}",
            image=encode_png(drawn.image),
            prompt=domain.prompt(scene),
            report=domain.report(scene),
            findings=json.dumps(domain.truth(scene)),
            scene=json.dumps(scene),
            masks=encode_masks(drawn.masks) if domain.findings else None,
        )
