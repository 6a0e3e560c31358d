"""Draws the anatomy of a phantom chest X-ray as a map of attenuation, and turns such a map into a picture.

Coordinates are the patient's: u from -1 to 1 across (positive = the patient's left = the picture's right), v from -1 to
1 down. All shapes are closed forms with soft edges, so that a scene looks alike at every size, and everything after the
attenuation map acts on single pixels: a finding that adds to the map changes nothing outside itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

Map = NDArray[np.float32]
MIN_SIZE, MAX_SIZE = 32, 512
BANK, BANK_SIZE = 12, 64  # textures kept, and the size they are made at
# Attenuation, in parts of the picture's white: radiographs are shown with dense things bright.
AIR, CHEST_WALL, MEDIASTINUM, HEART, ABDOMEN, FLUID = 0.02, 0.46, 0.60, 0.62, 0.64, 0.68
HEART_COVER = 0.93  # the heart hides this share of what lies behind it


@dataclass(frozen=True)
class Frame:
    """Grids of one size: pixel centres in [-1, 1], and smooth noise (BANK, S, S) of unit deviation."""

    x: Map
    y: Map
    coarse: Map
    fine: Map


@lru_cache(maxsize=8)
def frame_of(size: int) -> Frame:
    """The grids of a size, made once.

    Raises:
        ValueError: size outside 32..512.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(
            f"picture size {size} is outside {MIN_SIZE}..{MAX_SIZE}; set prepare_data.image_size in params.yaml"
        )
    centres = ((np.arange(size) + 0.5) * (2 / size) - 1).astype(np.float32)
    x, y = np.meshgrid(centres, centres)
    rng = np.random.default_rng(0)

    def bank(sigma: float) -> Map:  # made at one size and enlarged, so that a scene has the same texture at every size
        noise = rng.standard_normal((BANK, BANK_SIZE, BANK_SIZE), dtype=np.float32)
        smooth = gaussian_filter(noise, (0, sigma * BANK_SIZE, sigma * BANK_SIZE), mode="wrap")
        smooth = zoom(smooth, (1, size / BANK_SIZE, size / BANK_SIZE), mode="grid-wrap", grid_mode=True)
        return (smooth / smooth.std((1, 2), keepdims=True)).astype(np.float32)

    return Frame(x, y, coarse=bank(0.05), fine=bank(0.016))


@dataclass
class Canvas:
    """A picture being drawn.

    Attributes:
        u, v: (S, S) the patient's coordinates of every pixel; `pixel` is the size of one.
        lungs: side -> (S, S) share of lung in [0, 1], before any finding.
        rim: side -> (S, S) roundness q of the lung's outline: below 1 inside (`lung_roundness`).
        mu: (S, S) attenuation.
        inside: (S, S) bool, pixels inside the collimation border.
        masks: label -> (S, S) bool, pixels that the finding may have changed.
    """

    u: Map
    v: Map
    pixel: float
    anatomy: Mapping[str, float]
    coarse: Map
    fine: Map
    inside: NDArray[np.bool_]
    lungs: dict[str, Map] = field(default_factory=dict)
    mu: Map = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def outward(self, side: str) -> Map:
        """Distance from the midline towards a side."""
        return self.u if side == "left" else -self.u

    def edge(self, distance: Map, width: float) -> Map:
        """0 where distance < -width / 2, 1 where > width / 2, a ramp between (never steeper than a pixel)."""
        return soft(distance, max(width, 1.2 * self.pixel))


def soft(distance: Map, width: float) -> Map:
    """The ramp of `Canvas.edge`."""
    ramp = distance * np.float32(1 / width)
    ramp += np.float32(0.5)
    return clamp(ramp, 0, 1)


def clamp(values: NDArray[np.floating[Any]], low: float, high: float) -> Map:
    """`np.clip` in place, several times faster on small pictures."""
    np.maximum(values, low, out=values)
    np.minimum(values, high, out=values)
    return values.astype(np.float32, copy=False)


def blend(mu: Map, target: float | Map, weight: Map) -> None:
    """mu <- mu + weight (target - mu), in place."""
    mu += weight * (target - mu)


def open_canvas(scene: Mapping[str, Any], size: int) -> Canvas:
    """A canvas with the patient's coordinates under the study's pose."""
    frame, pose = frame_of(size), scene["pose"]
    cos, sin = math.cos(pose["angle"]) / pose["scale"], math.sin(pose["angle"]) / pose["scale"]
    x, y = frame.x - np.float32(pose["x"]), frame.y - np.float32(pose["y"])
    u, v = x * np.float32(cos) + y * np.float32(sin), y * np.float32(cos) - x * np.float32(sin)
    left, right, top, bottom = scene["border"]
    inside = np.zeros((size, size), bool)
    inside[round(top * size) : size - round(bottom * size), round(left * size) : size - round(right * size)] = True
    coarse, fine = frame.coarse[pose["texture"] % BANK], frame.fine[pose["texture"] // BANK % BANK]
    if pose["texture"] // BANK**2 % 2:
        coarse, fine = coarse[:, ::-1], fine[::-1]
    return Canvas(u, v, 2 / size / pose["scale"], scene["anatomy"], coarse, fine, inside)


def lung_roundness(canvas: Canvas, side: str, gap: float | Map = 0.0) -> Map:
    """q of the lung's outline, 1 on it: a superellipse that narrows towards the apex.

    `gap` pulls the outline in from above and from the side, as air in the pleural space does.
    """
    a = canvas.anatomy
    taper = clamp((-0.05 - canvas.v) * np.float32(1 / 0.75), 0, 1)
    centre = a["lung_x"] - gap / 2 - 0.12 * taper
    width = (a["lung_w"] - gap / 2) * (1 - 0.34 * taper)
    across = np.abs(canvas.outward(side) - centre) / width
    down = np.abs(canvas.v - gap / 2) / (a["lung_h"] - gap / 2)
    return across * across * np.sqrt(across) + down * down * np.sqrt(down)


def dome_of(canvas: Canvas, side: str) -> Map:
    """v of the diaphragm at every pixel's u: highest in the middle of the lung, deep in the costophrenic angle."""
    a = canvas.anatomy
    offset = (canvas.outward(side) - np.float32(a["lung_x"] - 0.04)) * np.float32(1 / 0.30)
    return np.float32(a["dome"] + (a["dome_step"] if side == "left" else 0.0)) + np.float32(0.17) * offset * offset


def heart_of(canvas: Canvas, growth: float = 1.0) -> Map:
    """Share of heart in [0, 1]; `growth` widens it, towards the patient's left above all."""
    a = canvas.anatomy
    rx, ry = a["heart_w"] * growth, a["heart_h"] * (1 + 0.35 * (growth - 1))
    du = canvas.u - np.float32(a["heart_x"] + 0.42 * a["heart_w"] * (growth - 1))
    dv = canvas.v - np.float32(a["heart_y"])
    du, dv = du - np.float32(0.25) * dv, dv - np.float32(0.30) * du  # the apex points down and to the patient's left
    return canvas.edge((1 - np.sqrt((du / rx) ** 2 + (dv / ry) ** 2)) * np.float32(ry), 0.04)


def draw_anatomy(canvas: Canvas) -> None:
    """Fill `mu` and `lungs`: soft tissue, lungs, ribs, heart and vessels, mediastinum, spine, trachea, clavicles."""
    a, u, v = canvas.anatomy, canvas.u, canvas.v
    width = np.abs(u)
    shoulder = np.float32(a["body_w"]) * np.sqrt(clamp((v + 1.02) * np.float32(2.2), 0.04, 1))
    canvas.mu = np.full_like(u, AIR)
    blend(canvas.mu, np.float32(CHEST_WALL) + np.float32(0.02) * canvas.coarse, canvas.edge(shoulder - width, 0.06))
    belly = canvas.edge(v - np.float32(a["dome"] + 0.10), 0.25) * canvas.edge(np.float32(a["body_w"]) - width, 0.1)
    blend(canvas.mu, ABDOMEN, belly)
    bubble = (u - np.float32(0.36)) ** 2 * np.float32(0.5) + (v - np.float32(a["dome"] + a["dome_step"] + 0.14)) ** 2
    canvas.mu -= clamp(np.float32(a["bubble"]) - np.float32(16) * bubble, 0, 0.14)  # air in the stomach
    root = np.float32(a["mediastinum"]) + np.float32(0.10) * clamp(v - np.float32(0.1), 0, 1)
    for side in ("left", "right"):
        x = canvas.outward(side)
        lung = canvas.edge((1 - lung_roundness(canvas, side)) * np.float32(0.16), 0.05)
        lung *= canvas.edge(dome_of(canvas, side) - v, 0.04)
        lung *= canvas.edge(x - root, 0.05)
        canvas.lungs[side] = lung
    heart = heart_of(canvas)
    both = canvas.lungs["left"] + canvas.lungs["right"]
    vessels = np.float32(0.018) * canvas.fine + np.float32(0.012) * canvas.coarse
    blend(canvas.mu, np.float32(a["lung_mu"]) + vessels, both)
    centre = canvas.edge(root + np.float32(0.03) - width, 0.06) * canvas.edge(v + np.float32(1.02), 0.1)
    blend(canvas.mu, MEDIASTINUM, centre * clamp(v + np.float32(1.35), 0.45, 0.9))
    _draw_hila(canvas, both)
    _draw_bones(canvas, width)
    blend(canvas.mu, HEART, heart * np.float32(HEART_COVER))
    for side in ("left", "right"):
        canvas.lungs[side] = canvas.lungs[side] * (1 - heart)


def _draw_hila(canvas: Canvas, lungs: Map) -> None:
    """Vessels at the lung roots, and lung markings that fan out from them."""
    a = canvas.anatomy
    x, dv = np.abs(canvas.u), canvas.v - np.float32(a["hilum_y"])
    near = clamp(1 - (x - np.float32(0.2)) ** 2 * np.float32(60) - dv * dv * np.float32(26), 0, 1)
    slope = dv / (x + np.float32(0.05))
    fan = clamp(np.cos(slope * np.float32(7) + np.float32(a["vessels"])) * np.float32(2) - 1, 0, 1)
    reach = clamp(1 - ((x - np.float32(0.12)) ** 2 + dv * dv) * np.float32(4.5), 0, 1)
    canvas.mu += lungs * (np.float32(a["hilum"]) * near + np.float32(0.045) * fan * reach)


def _draw_bones(canvas: Canvas, width: Map) -> None:
    """Spine with vertebrae and the trachea before it, ribs, clavicles."""
    a, v = canvas.anatomy, canvas.v
    spine = canvas.edge(np.float32(0.075) - width, 0.03)
    discs = np.cos(v * np.float32(2 * math.pi * 7.5) + np.float32(a["rib_phase"]))
    canvas.mu += spine * (np.float32(0.05) + np.float32(0.025) * discs)
    trachea = canvas.edge(np.float32(0.045) - np.abs(canvas.u + np.float32(0.01)), 0.03)
    canvas.mu -= np.float32(0.17) * trachea * canvas.edge(np.float32(-0.28) - v, 0.1)
    cage = canvas.edge(np.float32(a["lung_x"] + a["lung_w"] + 0.05) - width, 0.05)
    cage *= canvas.edge(width - np.float32(0.10), 0.08) * canvas.edge(np.float32(a["dome"] + 0.22) - v, 0.25)
    cage *= canvas.edge(v + np.float32(0.80), 0.12)
    phase = v - np.float32(a["rib_slope"]) * width + np.float32(0.55) * (width - np.float32(0.42)) ** 2
    ribs = np.cos(phase * np.float32(2 * math.pi * a["rib_rate"]) + np.float32(a["rib_phase"]))
    canvas.mu += np.float32(a["rib"]) * cage * clamp(ribs * np.float32(1.3) - np.float32(0.1), 0, 1)
    along = clamp((width - np.float32(0.09)) * np.float32(1 / 0.6), 0, 1)
    bend = np.float32(a["clavicle"]) - np.float32(0.13) * along + np.float32(0.10) * along * (1 - along)
    bone = canvas.edge(np.float32(0.032) - np.abs(v - bend), 0.03)
    bone *= canvas.edge(width - np.float32(0.09), 0.05) * canvas.edge(np.float32(0.70) - width, 0.08)
    canvas.mu += np.float32(0.13) * bone


def draw_marker(canvas: Canvas) -> None:
    """The letter L of a lead marker beside the patient's left shoulder."""
    u, v = canvas.u - np.float32(0.86), canvas.v + np.float32(0.80)
    upright = canvas.edge(np.float32(0.022) - np.abs(u), 0.02) * canvas.edge(np.float32(0.08) - np.abs(v), 0.02)
    foot = canvas.edge(np.float32(0.05) - np.abs(u - np.float32(0.04)), 0.02)
    foot *= canvas.edge(np.float32(0.022) - np.abs(v - np.float32(0.065)), 0.02)
    blend(canvas.mu, 0.95, np.maximum(upright, foot))


def expose(canvas: Canvas, scene: Mapping[str, Any], noise: bool) -> NDArray[np.uint8]:
    """(S, S, 3) uint8: gain, gamma and noise of the study's exposure, black outside the collimation border."""
    e = scene["exposure"]
    picture = clamp(canvas.mu.copy(), 0, 1.2) ** np.float32(e["gamma"])
    picture *= np.float32(e["gain"] * 255)
    picture += np.float32(e["offset"] * 255)
    if noise:
        grain = np.random.Generator(np.random.SFC64(scene["noise_seed"])).standard_normal(picture.shape, np.float32)
        picture += grain * np.float32(e["noise"] * 255)
    picture *= canvas.inside
    picture += np.float32(0.5)
    image = np.empty((*picture.shape, 3), np.uint8)
    image[...] = clamp(picture, 0, 255).astype(np.uint8)[..., None]
    return image
