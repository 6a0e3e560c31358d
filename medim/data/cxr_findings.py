"""How each finding of a phantom chest X-ray is drawn: one painter a finding, which changes nothing outside its mask.

A painter gets the canvas, the side ("" where the finding has none), its site and its strength in (0, 1], which scales
its contrast, and returns the (S, S) weight of what it changed: the mask is where that is above zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from medim.data.cxr_draw import FLUID, HEART, HEART_COVER, Canvas, Map, blend, clamp, heart_of, lung_roundness

Painter = Callable[[Canvas, str, Mapping[str, Any], float], Map]

PLACE = {"upper": -0.40, "mid": -0.08, "lower": 0.20}  # v of the lung zones' middles
FLUID_HEIGHT = {"small": 0.17, "moderate": 0.27, "large": 0.40}  # above the lowest point of the lung
AIR_GAP = {"small": 0.13, "moderate": 0.19, "large": 0.27}  # between chest wall and collapsed lung


def _centre(canvas: Canvas, side: str, site: Mapping[str, Any]) -> tuple[Map, Map]:
    """Offsets of every pixel from the site, outward and down."""
    du = canvas.outward(side) - np.float32(canvas.anatomy["lung_x"] + site["x"])
    return du, canvas.v - np.float32(PLACE[site["place"]] + site["y"])


def paint_cardiomegaly(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """The heart's shadow widens to more than half of the chest."""
    heart = heart_of(canvas)
    more = clamp(heart_of(canvas, site["growth"]) - heart, 0, 1) * np.float32(HEART_COVER * strength)
    blend(canvas.mu, HEART, more / (1 - np.float32(HEART_COVER) * heart))  # exact where the old edge is soft
    for lung in canvas.lungs.values():
        lung *= 1 - more
    return more


def paint_edema(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """Bat-wing haze around both hila, blotchy."""
    x, dv = np.abs(canvas.u), canvas.v - np.float32(canvas.anatomy["hilum_y"])
    near = 1.15 - ((x - np.float32(0.30)) ** 2 * np.float32(11) + dv * dv * np.float32(7.5))
    haze = clamp(near, 0, 1) * (canvas.lungs["left"] + canvas.lungs["right"])
    canvas.mu += haze * np.float32(strength) * clamp(np.float32(0.23) + np.float32(0.05) * canvas.fine, 0.08, 0.4)
    return haze


def paint_effusion(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """Fluid in the costophrenic angle; its surface rises towards the chest wall."""
    a, x = canvas.anatomy, canvas.outward(side)
    floor = a["dome"] + (a["dome_step"] if side == "left" else 0.0) + 0.22
    rise = clamp(x - np.float32(a["lung_x"] - 0.2), 0, 1)
    surface = np.float32(floor - FLUID_HEIGHT[site["size"]] + 0.05) - np.float32(0.42) * rise * rise
    fluid = canvas.lungs[side] * canvas.edge(canvas.v - surface, 0.05)
    canvas.mu += fluid * np.float32((FLUID - a["lung_mu"] - 0.03) * strength)  # instead of lung, so no seam at its edge
    return fluid


def paint_pneumothorax(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """Black air without lung markings at apex and side, bounded by the pleural line."""
    narrows = clamp((np.float32(0.34) - canvas.v) * np.float32(2.2), 0, 1)  # air rises: none is left at the base
    q = lung_roundness(canvas, side, AIR_GAP[site["size"]] * narrows)
    above = clamp(narrows * np.float32(3), 0, 1)
    lateral = canvas.edge(canvas.outward(side) - np.float32(0.24), 0.1)
    zone = canvas.lungs[side] * above * lateral
    air = canvas.edge((q - 1) * np.float32(0.16), 0.03) * zone
    line = clamp(1 - np.abs((q - 1) * np.float32(0.16)) * np.float32(1 / max(0.028, 0.9 * canvas.pixel)), 0, 1) * zone
    blend(canvas.mu, 0.04, air * np.float32(0.9 * strength))
    canvas.mu += line * np.float32(0.30 * strength)
    return air + line


def paint_consolidation(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """A patch of filled lung with ragged edges."""
    du, dv = _centre(canvas, side, site)
    ragged = 1 - ((du / site["w"]) ** 2 + (dv / site["h"]) ** 2) + np.float32(0.20) * canvas.fine
    reach = clamp((1.7 - (du / site["w"]) ** 2 - (dv / site["h"]) ** 2) * np.float32(2), 0, 1)
    patch = clamp(ragged * np.float32(1.2), 0, 1) * reach * canvas.lungs[side]
    canvas.mu += patch * np.float32(0.38 * strength)
    return patch


def paint_nodule(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """A round dense spot."""
    du, dv = _centre(canvas, side, site)
    spot = canvas.edge(np.float32(site["r"]) - np.sqrt(du * du + dv * dv), 0.03)
    canvas.mu += spot * np.float32(0.44 * strength)
    return spot


def paint_atelectasis(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """A thin plate across the lung."""
    du, dv = _centre(canvas, side, site)
    cos, sin = np.float32(math.cos(site["angle"])), np.float32(math.sin(site["angle"]))
    along, across = du * cos + dv * sin, dv * cos - du * sin
    band = canvas.edge(np.float32(site["length"] / 2) - np.abs(along), 0.05)
    band *= canvas.edge(np.float32(0.030) - np.abs(across + np.float32(0.5) * along * along), 0.03) * canvas.lungs[side]
    canvas.mu += band * np.float32(0.40 * strength)
    return band


def paint_fracture(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """A broken rib in the side wall: two bright ends out of step, a dark gap between them."""
    a = canvas.anatomy
    dv = canvas.v - np.float32(site["v"])
    taper = min(max((-0.05 - site["v"]) / 0.75, 0), 1)
    wall = (
        a["lung_x"] - 0.12 * taper + a["lung_w"] * (1 - 0.34 * taper) * (1 - abs(site["v"] / a["lung_h"]) ** 2.5) ** 0.4
    )
    du = canvas.outward(side) - np.float32(wall + 0.015)
    du, dv = du * np.float32(0.9) - dv * np.float32(0.43), dv * np.float32(0.9) + du * np.float32(0.43)  # ribs run down
    near = canvas.edge(np.float32(0.10) - np.abs(du), 0.02) * canvas.edge(np.float32(0.13) - np.abs(dv), 0.02)
    step = np.float32(0.045) * np.sign(dv)
    end = canvas.edge(np.float32(0.036) - np.abs(du - step), 0.02) * near * (np.abs(dv) > 0.035)
    gap = canvas.edge(np.float32(0.035) - np.abs(dv), 0.02) * near
    canvas.mu += end * np.float32(0.45 * strength)
    blend(canvas.mu, 0.08, gap * np.float32(0.75 * strength))
    return end + gap


def paint_pacemaker(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """A generator under a collarbone, its lead through the great vein to the heart's apex."""
    sign = 1 if site["side"] == "left" else -1
    du, dv = canvas.u - np.float32(sign * site["x"]), canvas.v - np.float32(site["y"])
    across, down = (du / np.float32(0.11)) ** 2, (dv / np.float32(0.088)) ** 2
    box = canvas.edge((1 - np.sqrt(np.sqrt(across * across + down * down))) * np.float32(0.11), 0.03)
    start, stop = site["y"], canvas.anatomy["heart_y"] + 0.10
    t = clamp((canvas.v - np.float32(start)) * np.float32(1 / (stop - start)), 0, 1)
    a, b, c = sign * site["x"], -0.10, canvas.anatomy["heart_x"] + 0.12  # a quadratic Bezier curve in t
    path = np.float32(a) + t * np.float32(2 * (b - a)) + t * t * np.float32(a - 2 * b + c)
    slope = (np.float32(2 * (b - a)) + t * np.float32(2 * (a - 2 * b + c))) * np.float32(1 / (stop - start))
    lead = canvas.edge(np.float32(0.020) - np.abs(canvas.u - path) / np.sqrt(1 + slope * slope), 0.02)
    lead *= canvas.edge(canvas.v - np.float32(start), 0.03) * canvas.edge(np.float32(stop) - canvas.v, 0.03)
    device = np.maximum(box, lead * np.float32(0.9))
    canvas.mu += device * np.float32(0.46 * strength)
    return device


def paint_line(canvas: Canvas, side: str, site: Mapping[str, Any], strength: float) -> Map:
    """A catheter from the neck into the superior vena cava."""
    sign = 1 if site["side"] == "left" else -1
    tip = site["tip"]
    t = clamp((canvas.v + np.float32(0.95)) * np.float32(1 / (tip + 0.95)), 0, 1)
    ease = t * t * (3 - 2 * t)
    path = (1 - ease) * np.float32(sign * site["x"]) - ease * np.float32(0.10)
    wire = canvas.edge(np.float32(0.020) - np.abs(canvas.u - path) * np.float32(0.95), 0.02)
    wire *= canvas.edge(np.float32(tip) - canvas.v, 0.03) * canvas.edge(canvas.v + np.float32(0.95), 0.05)
    canvas.mu += wire * np.float32(0.44 * strength)
    return wire


PAINTERS: dict[str, Painter] = {  # in the order of painting: the heart first, devices last
    "cardiomegaly": paint_cardiomegaly,
    "edema": paint_edema,
    "consolidation": paint_consolidation,
    "nodule": paint_nodule,
    "atelectasis": paint_atelectasis,
    "effusion": paint_effusion,
    "pneumothorax": paint_pneumothorax,
    "rib fracture": paint_fracture,
    "pacemaker": paint_pacemaker,
    "central line": paint_line,
}
