"""Captioned drawings: coloured shapes in relations to each other. Not medical: what others were pretrained on.

A scene is a JSON-able dict:
    {"patient", "study", "words", "background": {"style", "colour"},
     "shapes": [{"shape", "colour", "size", "x", "y", "r"}], "relations": [[subject, relation, object]]}
Lengths are fractions of the picture's side; subjects and objects are indices into shapes. Drawings have no findings.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medim.data.domain import Grammar, Rendered
from medim.data.scene import Captioned

Map = NDArray[np.floating[Any]]

COLOURS = {
    "red": (214, 40, 40),
    "orange": (244, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 150, 70),
    "blue": (40, 90, 200),
    "purple": (130, 60, 170),
    "pink": (245, 130, 180),
    "brown": (120, 75, 40),
    "black": (25, 25, 30),
}
BACKGROUNDS = {"white": (250, 250, 250), "grey": (175, 175, 180), "beige": (235, 220, 190), "cyan": (185, 230, 238)}
STYLES = ("plain", "striped", "shaded")
SIZES = {"small": (0.08, 0.10), "medium": (0.13, 0.15), "large": (0.19, 0.22)}  # radii: ranges do not overlap
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star", "diamond")
HOLLOW = ("circle", "square", "ring", "diamond")  # what a small shape may lie inside of
RELATIONS = {
    "left": ("to the left of", "on the left side of", "left of"),
    "right": ("to the right of", "on the right side of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "inside": ("inside", "in the middle of", "within"),
}
CAPTIONS = (
    "{subject} is {relation} {object}.",
    "{subject} lies {relation} {object}.",
    "{subject} can be seen {relation} {object}.",
    "there is {subject} {relation} {object}.",
    "the drawing shows {subject} {relation} {object}.",
)
GROUNDS = (
    "the background is {ground}.",
    "everything is drawn on a {ground} background.",
    "behind the shapes there is a {ground} background.",
    "the shapes stand on a {ground} ground.",
)
SLOT = re.compile(r"\{(\w+)\}")


def _article(words: str) -> str:
    """'orange star' -> 'an orange star'."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


class DrawingGrammar:
    """The language of captions (see `medim.data.domain.Grammar`)."""

    def __init__(self) -> None:
        shape = rf"an? (?:{'|'.join(SIZES)}) (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
        words = {
            "subject": shape,
            "object": shape,
            "relation": f"(?:{'|'.join(word for options in RELATIONS.values() for word in options)})",
            "ground": f"(?:{'|'.join(STYLES)}) (?:{'|'.join(BACKGROUNDS)})",
        }
        sentences = (SLOT.sub(lambda slot: words[slot[1]], text.replace(".", r"\.")) for text in CAPTIONS + GROUNDS)
        self._valid = re.compile("|".join(sentences))

    def write(self, scene: Mapping[str, Any]) -> str:
        """The caption of a scene: one sentence a relation, then sometimes the background; 10-35 words."""
        rng = random.Random(scene["words"])
        shapes = [_article(f"{shape['size']} {shape['colour']} {shape['shape']}") for shape in scene["shapes"]]
        sentences = [
            rng.choice(CAPTIONS).format(
                subject=shapes[subject], relation=rng.choice(RELATIONS[relation]), object=shapes[other]
            )
            for subject, relation, other in scene["relations"]
        ]
        ground = f"{scene['background']['style']} {scene['background']['colour']}"
        backdrop = rng.choice(GROUNDS).format(ground=ground)
        if len(sentences) == 1 or (rng.random() < 0.4 and len(" ".join([*sentences, backdrop]).split()) <= 35):
            sentences.append(backdrop)
        return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)

    def read(self, report: str) -> dict[str, str]:
        """{}: drawings have no findings."""
        return {}

    def is_valid(self, sentence: str) -> bool:
        """Whether the grammar can produce this sentence, articles included."""
        if not sentence[:1].isupper() or re.search(r"\b[Aa](?: [aeiou]|n [^aeiou])", sentence):
            return False
        return bool(self._valid.fullmatch(sentence[0].lower() + sentence[1:]))


def _distance(shape: str, u: Map, v: Map) -> Map:
    """Implicit outline of a shape of radius 1 at u, v (down): below 1 inside, 1 on the outline, above 1 outside."""
    outline: Map
    if shape == "circle":
        outline = np.sqrt(u * u + v * v)
    elif shape == "ring":
        outline = np.abs(np.sqrt(u * u + v * v) - 0.8) * 5
    elif shape == "square":
        outline = np.maximum(np.abs(u), np.abs(v)) * 1.2
    elif shape == "diamond":
        outline = np.abs(u) * 1.25 + np.abs(v)
    elif shape == "cross":
        u, v = np.abs(u), np.abs(v)
        outline = np.maximum(np.minimum(u, v) / 0.3, np.maximum(u, v))
    elif shape == "triangle":
        outline = np.maximum(v, np.abs(u) * 0.866 - v * 0.5) * 2
    else:
        outline = _star(u, v)
    return outline


def _star(u: Map, v: Map) -> Map:
    """A star of five points, by folding the plane into one half of a point: the line from valley (0.42) to tip (1)."""
    turn = 2 * math.pi / 5
    radius, angle = np.sqrt(u * u + v * v), np.arctan2(v, u) + math.pi / 2  # a tip points up
    fold = np.abs(np.mod(angle, turn) - turn / 2)  # 0 in a valley, turn / 2 at a tip
    tip_x, tip_y = math.cos(turn / 2), math.sin(turn / 2)
    star: Map = (tip_y * radius * np.cos(fold) - (tip_x - 0.42) * radius * np.sin(fold)) / (0.42 * tip_y)
    return star


@lru_cache(maxsize=8)
def _axis(size: int) -> Map:
    """Pixel centres in [0, 1].

    Raises:
        ValueError: size outside 32..512.
    """
    if not 32 <= size <= 512:
        raise ValueError(f"drawings have 32 to 512 pixels, got {size}: change `size` of the dataset in params.yaml")
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


@lru_cache(maxsize=64)
def _background(style: str, colour: str, size: int) -> Map:
    """(S, S, 3) grey levels; not to be written to."""
    axis = _axis(size)
    if style == "striped":
        light = 1 - 0.12 * (np.mod((axis[:, None] + axis) * 6, 1) < 0.5)
    elif style == "shaded":
        light = np.broadcast_to(1.02 - 0.30 * axis[:, None], (size, size))
    else:
        light = np.ones((size, size))
    ground: Map = np.clip(light[..., None] * np.asarray(BACKGROUNDS[colour]), 0, 255).astype(np.float32)
    return ground


def _paint(image: Map, shape: Mapping[str, Any]) -> None:
    """Blend one shape into (S, S, 3) in place, its edge a pixel wide."""
    size, reach = image.shape[0], 1.1 * shape["r"]
    axis = _axis(size)
    rows, cols = (
        slice(max(0, int((shape[key] - reach) * size)), int((shape[key] + reach) * size) + 1) for key in ("y", "x")
    )
    u, v = (axis[cols] - shape["x"]) / shape["r"], (axis[rows, None] - shape["y"]) / shape["r"]
    steep = 5 if shape["shape"] == "ring" else 1
    edge = (1 - _distance(shape["shape"], u, v)) * (shape["r"] * size / steep) + 0.5
    cover = np.clip(edge, 0, 1)[..., None]
    view = image[rows, cols]
    view += cover * (np.asarray(COLOURS[shape["colour"]], np.float32) - view)


class Drawings(Captioned):
    """The domain `drawings` (see `medim.data.domain.Domain`): no findings, no masks."""

    name = "drawings"
    kind = "drawing"

    def __init__(self) -> None:
        self._words = DrawingGrammar()
        self.grammar: Grammar = self._words

    def studies(self, seed: int, patient: int) -> list[dict[str, Any]]:
        """One scene: 2-4 shapes, one in each of some quarters, and sometimes one inside another."""
        rng = random.Random(f"drawings {seed} {patient}")
        count = rng.randint(2, 4)
        nested = rng.random() < 0.35
        quarters = rng.sample(range(4), count - nested)
        looks = rng.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], count)
        shapes = [_place(rng, look, quarter) for look, quarter in zip(looks, quarters, strict=False)]
        if nested:
            shapes.append(_nest(rng, looks[-1], shapes))
        order = rng.sample(range(len(shapes)), len(shapes))
        scene = {
            "patient": patient,
            "study": 0,
            "words": rng.getrandbits(31),
            "background": {"style": rng.choice(STYLES), "colour": rng.choice(list(BACKGROUNDS))},
            "shapes": shapes,
        }
        return [{**scene, "relations": _relate(shapes, order, nested)}]

    def render(self, scene: Mapping[str, Any], size: int, noise: bool = True) -> Rendered:
        """Draw a scene: image (S, S, 3) uint8 and no masks. Drawings have no noise: `noise` changes nothing.

        Raises:
            ValueError: size outside 32..512.
        """
        image = _background(scene["background"]["style"], scene["background"]["colour"], size).copy()
        for shape in scene["shapes"]:
            _paint(image, shape)
        return Rendered(image.astype(np.uint8), {})

    def report(self, scene: Mapping[str, Any]) -> str:
        """10-35 words: every shape, in its relation to another."""
        return self._words.write(scene)


def _place(rng: random.Random, look: tuple[str, str], quarter: int) -> dict[str, Any]:
    """A shape somewhere in its quarter of the picture, not touching the quarter's border."""
    size = rng.choice(list(SIZES))
    r = rng.uniform(*SIZES[size])
    room = 0.245 - r
    x, y = (0.25 + 0.5 * half + rng.uniform(-room, room) for half in (quarter % 2, quarter // 2))
    return {"shape": look[1], "colour": look[0], "size": size, "x": round(x, 4), "y": round(y, 4), "r": round(r, 4)}


def _nest(rng: random.Random, look: tuple[str, str], shapes: list[dict[str, Any]]) -> dict[str, Any]:
    """A small shape inside the first one, which is made large, hollow and of another colour."""
    outer = shapes[0]
    outer.update(size="large", r=round(rng.uniform(*SIZES["large"]), 4))
    outer.update({key: round(0.25 if outer[key] < 0.5 else 0.75, 4) for key in ("x", "y")})
    taken = {(shape["colour"], shape["shape"]) for shape in shapes} | {look}
    if outer["shape"] not in HOLLOW or outer["colour"] == look[0]:
        free = [(c, s) for c in COLOURS for s in HOLLOW if c != look[0] and (c, s) not in taken]
        outer["colour"], outer["shape"] = rng.choice(free)
    r = round(rng.uniform(*SIZES["small"]), 4)
    return {"shape": look[1], "colour": look[0], "size": "small", "x": outer["x"], "y": outer["y"], "r": r}


def _relate(shapes: Sequence[Mapping[str, Any]], order: list[int], nested: bool) -> list[tuple[int, str, int]]:
    """Relations that together name every shape: (subject, relation, object)."""
    last = len(shapes) - 1
    rest = [k for k in order if not (nested and k in (0, last))]
    relations = [(last, "inside", 0)] if nested else []
    if len(rest) % 2:
        other = 0 if nested else rest[1]
        relations.append((rest[0], _direction(shapes[rest[0]], shapes[other]), other))
        rest = rest[1:]
    relations += [(a, _direction(shapes[a], shapes[b]), b) for a, b in zip(rest[::2], rest[1::2], strict=True)]
    return relations


def _direction(subject: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where the subject is as seen from the other shape, along the axis on which they lie farther apart."""
    dx, dy = subject["x"] - other["x"], subject["y"] - other["y"]
    if abs(dx) >= abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


DOMAIN = {"drawings": Drawings()}
