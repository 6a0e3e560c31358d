"""Phantom chest X-rays of two sites: `phantom_cxr` (training and test) and `phantom_cxr_ood` (another site, test only).

A scene is a JSON-able dict; body and sites of findings belong to the patient, the rest to the study:
    {"patient", "anatomy", "sites": {label: {...}}, "study", "findings": {label: {"state", "strength"}}, "prior",
     "pose", "exposure", "border", "marker", "noise_seed", "word_seed", "named"}
Every label has a site, also where it is absent, so that `change` can redraw a study with one finding more or less.
Radiological convention: the patient's left is on the picture's right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medim.data.cxr_draw import draw_anatomy, draw_marker, expose, open_canvas
from medim.data.cxr_findings import PAINTERS
from medim.data.cxr_scene import STRENGTH, draw_patient, draw_study
from medim.data.cxr_words import HOME
from medim.data.cxr_words_ood import AWAY
from medim.data.domain import SIDES, Grammar, Rendered, labels_of, without_side
from medim.data.report_grammar import ReportGrammar
from medim.data.scene import patient_pairs, scene_truth, with_state
from medim.pairs import Pair

NAMED = 0.45  # share of studies that may name region and condition in the prompt; 0.4 have one to name
FINDINGS = tuple(phrases.finding for phrases in HOME.phrases)
LABELS = labels_of(FINDINGS)
STUDIES = (1, 1, 2, 3)  # studies a patient, equally likely


@dataclass(frozen=True)
class Site:
    """What sets a hospital apart: ranges of its exposures, and the widest collimation border (share of the width)."""

    gain: tuple[float, float]
    gamma: tuple[float, float]
    offset: tuple[float, float]
    noise: tuple[float, float]
    border: float


HOME_SITE = Site(gain=(0.92, 1.12), gamma=(0.85, 1.2), offset=(0.0, 0.05), noise=(0.006, 0.02), border=0.07)
AWAY_SITE = Site(gain=(0.74, 0.88), gamma=(0.66, 0.82), offset=(0.06, 0.12), noise=(0.016, 0.024), border=0.0)


class PhantomCXR:
    """A domain of chest X-rays (see `medim.data.domain.Domain`)."""

    findings = FINDINGS

    def __init__(self, name: str, site: Site, grammar: ReportGrammar) -> None:
        self.name, self.site, self.writer = name, site, grammar
        self.grammar: Grammar = grammar

    def studies(self, seed: int, patient: int) -> list[dict[str, Any]]:
        """The scenes of a patient's 1-3 studies: one body, findings that come and go."""
        rng = random.Random(f"{self.name} {seed} {patient}")
        shared = draw_patient(rng, patient)
        scenes: list[dict[str, Any]] = []
        for study in range(rng.choice(STUDIES)):
            scene = draw_study(rng, shared, FINDINGS, scenes[-1] if scenes else None)
            scenes.append({**scene, "study": study, **self._acquisition(rng)})
        return scenes

    def _acquisition(self, rng: random.Random) -> dict[str, Any]:
        site = self.site
        names = ("gain", "gamma", "offset", "noise")
        return {
            "exposure": {name: round(rng.uniform(*getattr(site, name)), 4) for name in names},
            "border": [round(max(0.0, rng.uniform(-0.03, site.border)), 4) if site.border else 0.0 for _ in range(4)],
        }

    def render(self, scene: Mapping[str, Any], size: int, noise: bool = True) -> Rendered:
        """Draw a scene: image (S, S, 3) uint8, and masks of every pixel that a finding may have changed.

        Raises:
            ValueError: size outside 32..512.
        """
        canvas = open_canvas(scene, size)
        draw_anatomy(canvas)
        if scene["marker"]:
            draw_marker(canvas)
        found = scene["findings"]
        for name, paint in PAINTERS.items():
            for side in ("", *SIDES):
                label = f"{side} {name}".lstrip()
                if label in found:
                    changed = paint(canvas, side, scene["sites"][label], found[label]["strength"])
                    canvas.masks[label] = (changed > 0) & canvas.inside
        return Rendered(expose(canvas, scene, noise), canvas.masks)

    def report(self, scene: Mapping[str, Any]) -> str:
        """One line of prose; wording from the scene's `word_seed`, zones and sizes from its sites."""
        return self.writer.write(
            self.truth(scene), random.Random(scene["word_seed"]), scene["sites"], prior=scene["prior"]
        )

    def prompt(self, scene: Mapping[str, Any]) -> str:
        """'chest x-ray', and for NAMED of the studies ', <region>, <condition>' of one present finding."""
        head = "chest x-ray"
        if scene["named"] >= NAMED:
            return head
        present = [label for label, state in self.truth(scene).items() if state == "present"]
        if not present:
            return head if scene["findings"] else f"{head}, normal"
        label = present[int(scene["named"] / NAMED * len(present))]
        region = "chest wall" if without_side(label) == "rib fracture" else "lung"
        side = label.partition(" ")[0]
        return f"{head}, {side} {region}, {without_side(label)}" if side in SIDES else f"{head}, {label}"

    def truth(self, scene: Mapping[str, Any]) -> dict[str, str]:
        """Findings of the scene, in the order of the labels: label -> 'uncertain' or 'present'."""
        return scene_truth(scene, LABELS)

    def change(self, scene: Mapping[str, Any], label: str, state: str) -> dict[str, Any]:
        """The same study with one finding's state changed; the picture differs only inside that finding's mask.

        Raises:
            KeyError: no such label or state.
        """
        return with_state(scene, label, state, LABELS, STRENGTH)

    def pairs(self, seed: int, patient: int, size: int) -> Iterator[Pair]:
        """The patient's studies as pairs with scene and masks."""
        return patient_pairs(self, seed, patient, size)


DOMAIN = {
    "phantom_cxr": PhantomCXR("phantom_cxr", HOME_SITE, ReportGrammar(HOME, readers=(AWAY,))),
    "phantom_cxr_ood": PhantomCXR("phantom_cxr_ood", AWAY_SITE, ReportGrammar(AWAY, readers=(HOME,))),
}
