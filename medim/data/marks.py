"""Captioned marks on grounds: lines, spots, patches, wedges, some faint, on plain, cloudy, dotted or striped grounds.

The second half of what stands for a language model's pretraining, beside the coloured shapes of `drawings`. Not
medical: what pictures of the world have and coloured shapes have not is faint things, thin things, and things that are
not there though somebody might ask. Captions are dense, as those that multimodal models are pretrained on: one sentence
for each of the ten kinds, always in the same order and words, so that what a caption does not owe to its picture is
little. They say where a mark is as the viewer sees it, whether it is sure ("possible" for faint ones), and that others
are absent ("no ring"). These turns are those of reports on purpose: a language model knows them.

A scene is a JSON-able dict:
    {"patient", "study", "ground": {"tint", "light", "texture", "seed"},
     "marks": [{"kind", "shade", "size", "height", "side", "faint", "x", "y", "r", "angle", "contrast"}]}
Lengths are fractions of the picture's side, contrast is in grey levels. Marks are bright on dark and dark on light
grounds, so that none is cut off at black or white. At most one mark of a kind.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medim.data.domain import Grammar, Rendered
from medim.data.scene import Captioned

Map = NDArray[np.float32]

TINTS = {"grey": (1, 1, 1), "pink": (1, 0.72, 0.82), "purple": (0.75, 0.62, 0.95), "blue": (0.7, 0.8, 1)}
LIGHTS = {"dark": 60, "medium": 125, "light": 190}  # grey levels of the ground
TEXTURES = ("plain", "cloudy", "dotted", "striped")
SHADES = {"bright": 1, "dark": -1}
ON = {"dark": ("bright",), "medium": ("bright", "bright", "dark"), "light": ("dark",)}  # ground -> shades of marks
SIZES = {"small": (0.05, 0.07), "medium": (0.09, 0.11), "large": (0.14, 0.17)}  # radii: ranges do not overlap
KINDS = ("spot", "line", "curve", "patch", "bar", "wedge", "box", "ring", "cluster", "gap")
HEIGHTS = {"upper": (0.16, 0.32), "mid": (0.42, 0.58), "lower": (0.68, 0.84)}
SIDES = {"left": (0.16, 0.32), "centre": (0.44, 0.56), "right": (0.68, 0.84)}
CONTRAST = {False: (45, 70), True: (18, 26)}  # grey levels, of sure and of faint marks
PRESENT, FAINT, ABSENT = "{mark} in the {place}.", "possible {mark} in the {place}.", "no {kind}."
SLOT = re.compile(r"\{(\w+)\}")


class MarkGrammar:
    """The language of captions (see `medim.data.domain.Grammar`)."""

    def __init__(self) -> None:
        words = {
            "mark": f"(?:{'|'.join(SIZES)}) (?:{'|'.join(SHADES)}) (?:{'|'.join(KINDS)})",
            "place": f"(?:{'|'.join(HEIGHTS)}) (?:{'|'.join(SIDES)})",
            "kind": f"(?:{'|'.join(KINDS)})",
        }
        texts = (PRESENT, FAINT, ABSENT)
        self._valid = re.compile("|".join(SLOT.sub(lambda slot: words[slot[1]], t.replace(".", r"\.")) for t in texts))

    def write(self, scene: Mapping[str, Any]) -> str:
        """The caption: a sentence a kind, in the order of KINDS."""
        marks = {mark["kind"]: mark for mark in scene["marks"]}
        sentences = [_sentence(marks[kind]) if kind in marks else ABSENT.format(kind=kind) for kind in KINDS]
        return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)

    def read(self, report: str) -> dict[str, str]:
        """{}: marks are no findings."""
        return {}

    def is_valid(self, sentence: str) -> bool:
        """Whether the grammar can produce this sentence."""
        return bool(sentence[:1].isupper() and self._valid.fullmatch(sentence[0].lower() + sentence[1:]))


def _sentence(mark: Mapping[str, Any]) -> str:
    name, place = f"{mark['size']} {mark['shade']} {mark['kind']}", f"{mark['height']} {mark['side']}"
    return (FAINT if mark["faint"] else PRESENT).format(mark=name, place=place)


def _soft(distance: Map, width: float) -> Map:
    """1 where the distance is below 0, 0 above, a ramp of `width` between."""
    return np.clip(0.5 - distance / np.float32(width), 0, 1)


def _cover(mark: Mapping[str, Any], x: Map, y: Map, pixel: float) -> Map:
    """(S, S) in [0, 1]: how much of each pixel the mark covers."""
    kind, r = mark["kind"], np.float32(mark["r"])
    dx, dy = x - np.float32(mark["x"]), y - np.float32(mark["y"])
    cos, sin = np.float32(math.cos(mark["angle"])), np.float32(math.sin(mark["angle"]))
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    away = np.sqrt(dx * dx + dy * dy)
    thin = np.float32(0.6 * max(pixel, 1 / 64))
    if kind == "spot":
        return _soft(away - np.float32(0.6) * r, 2 * pixel)
    if kind == "line":
        return _soft(np.abs(across) - thin, pixel) * _soft(np.abs(along) - 2 * r, 2 * pixel)
    if kind == "curve":
        bent = across - along * along / (2 * r) + r / 2
        return _soft(np.abs(bent) - thin, 1.5 * pixel) * _soft(np.abs(along) - 1.6 * r, 2 * pixel)
    if kind == "patch":
        ragged = 1 + np.float32(0.25) * np.sin(dx * np.float32(41) + 3 * np.sin(dy * np.float32(37)))
        return np.clip(1.3 - (away / (r * ragged)) ** 2, 0, 1)
    if kind == "bar":
        return _soft(np.abs(across) - 2 * thin, 2 * pixel) * _soft(np.abs(along) - np.float32(1.3) * r, 2 * pixel)
    if kind == "wedge":
        return _soft(np.abs(dx) - r, 2 * pixel) * _soft(np.abs(dy) - r, 2 * pixel) * _soft(along, 2 * pixel)
    if kind == "box":
        return _soft(np.maximum(np.abs(dx), np.abs(dy) * np.float32(1.3)) - np.float32(0.7) * r, pixel)
    if kind == "ring":
        return _soft(np.abs(away - np.float32(0.8) * r) - thin, pixel)
    if kind == "gap":
        return _soft(away - r, pixel) * (1 - _soft(away - r + 2 * thin, pixel) * np.float32(0.7))
    dots = np.sin(dx * np.float32(95) + 1) * np.sin(dy * np.float32(95))  # cluster
    return np.clip(3 * dots - 0.9, 0, 1) * _soft(away - np.float32(1.2) * r, 4 * pixel)


def _upsampled(grid: Map, size: int) -> Map:
    """(S, S) bilinear interpolation of a square grid."""
    place = np.linspace(0, len(grid) - 1, size, dtype=np.float32)
    low = np.minimum(place.astype(int), len(grid) - 2)
    part = place - low
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _ground(ground: Mapping[str, Any], size: int) -> Map:
    """(S, S) grey levels."""
    rng = np.random.default_rng(ground["seed"])
    level = np.full((size, size), LIGHTS[ground["light"]], np.float32)
    level += _upsampled(rng.uniform(-14, 14, (3, 3)).astype(np.float32), size)  # uneven light
    if ground["texture"] == "cloudy":
        level += _upsampled(rng.uniform(-26, 26, (9, 9)).astype(np.float32), size)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    if ground["texture"] == "striped":
        angle, waves = rng.uniform(-math.pi / 2, math.pi / 2), rng.uniform(4, 8)
        run = np.float32(math.cos(angle)) * axis + np.float32(math.sin(angle)) * axis[:, None]
        level += 14 * np.sin(np.float32(2 * math.pi * waves) * run)
    elif ground["texture"] == "dotted":
        for x, y in rng.uniform(0, 1, (60, 2)).astype(np.float32):
            level -= 30 * _soft(np.sqrt((axis - x) ** 2 + (axis[:, None] - y) ** 2) - 0.015, 1.5 / size)
    return level


class Marks(Captioned):
    """The domain `marks` (see `medim.data.domain.Domain`): no findings, no masks."""

    name = "marks"
    kind = "photograph"

    def __init__(self) -> None:
        self._words = MarkGrammar()
        self.grammar: Grammar = self._words

    def studies(self, seed: int, patient: int) -> list[dict[str, Any]]:
        """One scene: 0-4 marks of different kinds in different places."""
        rng = random.Random(f"marks {seed} {patient}")
        kinds = rng.sample(KINDS, rng.choice((0, 1, 2, 2, 3, 3, 4)))
        places = rng.sample([(h, s) for h in HEIGHTS for s in SIDES], len(kinds))
        tint, light = rng.choice(("grey", "grey", "grey", *TINTS)), rng.choice(list(LIGHTS))
        ground = {"tint": tint, "light": light, "texture": rng.choice(TEXTURES)}
        marks = [_mark(rng, kind, rng.choice(ON[light]), *at) for kind, at in zip(kinds, places, strict=True)]
        return [{"patient": patient, "study": 0, "ground": {**ground, "seed": rng.getrandbits(31)}, "marks": marks}]

    def render(self, scene: Mapping[str, Any], size: int, noise: bool = True) -> Rendered:
        """Draw a scene: image (S, S, 3) uint8 and no masks; noise of 3 grey levels.

        Raises:
            ValueError: size outside 32..512.
        """
        if not 32 <= size <= 512:
            raise ValueError(f"marks have 32 to 512 pixels, got {size}: change `size` of the dataset in params.yaml")
        axis: Map = ((np.arange(size) + 0.5) / size).astype(np.float32)
        x, y = np.broadcast_to(axis, (size, size)), np.broadcast_to(axis[:, None], (size, size))
        level = _ground(scene["ground"], size)
        for mark in scene["marks"]:
            level = level + np.float32(SHADES[mark["shade"]] * mark["contrast"]) * _cover(mark, x, y, 1 / size)
        if noise:
            grain = np.random.default_rng(scene["ground"]["seed"] + 1).normal(0, 3, level.shape)
            level = level + grain.astype(np.float32)
        image = level[..., None] * np.asarray(TINTS[scene["ground"]["tint"]], np.float32)
        return Rendered(np.clip(image, 0, 255).astype(np.uint8), {})

    def report(self, scene: Mapping[str, Any]) -> str:
        """Every kind: its mark with size, shade and place, or that there is none."""
        return self._words.write(scene)


def _mark(rng: random.Random, kind: str, shade: str, height: str, side: str) -> dict[str, Any]:
    size, faint = rng.choice(list(SIZES)), rng.random() < 0.3
    numbers = {
        "x": rng.uniform(*SIDES[side]), "y": rng.uniform(*HEIGHTS[height]), "r": rng.uniform(*SIZES[size]),
        "angle": rng.uniform(-math.pi / 2, math.pi / 2), "contrast": rng.uniform(*CONTRAST[faint]),
    }  # fmt: skip
    return {
        "kind": kind, "shade": shade, "size": size, "height": height, "side": side, "faint": faint,
        **{name: round(value, 4) for name, value in numbers.items()},
    }  # fmt: skip


DOMAIN = {"marks": Marks()}
