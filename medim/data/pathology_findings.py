"""How each finding of phantom histology is drawn: one painter a finding, which changes nothing outside its own mask.

`strength` in (0, 1] sets both extent and contrast: 'uncertain' findings are smaller and fainter than any 'present' one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from medim.data.pathology_draw import (
    BANK,
    CROWDS,
    Canvas,
    Map,
    Region,
    blend,
    clip_unit,
    cut_region,
    draw_fibres,
    stamp,
)

Site = tuple[float, float, float]  # x, y in [0, 1], angle in radians
Painter = Callable[[Canvas, str, Site, float, np.random.Generator], None]


def _open(canvas: Canvas, name: str, region: Region) -> None:
    """Add a region to the finding's mask: every pixel that the finding may change."""
    size = canvas.assets.size
    mask = canvas.masks.setdefault(name, np.zeros((size, size), bool))
    mask[region.window] |= region.w > 0


def _blob(canvas: Canvas, name: str, site: Site, radius: float, strength: float) -> Region:
    """The region of a patchy finding: its radius shrinks with its strength."""
    region = cut_region(canvas.assets, site[0], site[1], radius * (0.45 + 0.55 * strength), 0.12)
    _open(canvas, name, region)
    return region


def _noise(canvas: Canvas, bank: Map, region: Region, rng: np.random.Generator) -> Map:
    """A window of a noise field of the bank."""
    return bank[int(rng.integers(BANK)), region.rows, region.cols]


def _crowd(canvas: Canvas, kind: str, region: Region, rng: np.random.Generator) -> Map:
    """A window of a crowd of nuclei."""
    return canvas.assets.crowds[kind][int(rng.integers(CROWDS)), region.rows, region.cols]


def paint_fibrosis(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """A band of dense collagen across the tile: wavy, strongly eosinophilic bundles, few thin nuclei."""
    assets = canvas.assets
    size, (x, y, angle) = assets.size, site
    across = (assets.y - np.float32(y)) * np.float32(math.cos(angle)) - (assets.x - np.float32(x)) * np.float32(
        math.sin(angle)
    )
    across += 0.025 * assets.coarse[int(rng.integers(BANK))]
    half = 0.155 * (0.45 + 0.55 * strength)
    d = (np.abs(across) / half).astype(np.float32)
    whole = Region(slice(0, size), slice(0, size), clip_unit((1 - d) / 0.3), d, assets.x, assets.y, 1.0)
    _open(canvas, name, whole)
    bundles = draw_fibres(assets, assets.x, assets.y, angle, int(rng.integers(BANK)), 13.0)
    grain = assets.fine[int(rng.integers(BANK))]
    blend(canvas.e, whole, np.maximum(1.25 + 0.30 * bundles + 0.22 * grain, 0), strength)
    blend(canvas.h, whole, 0.04, strength)


def paint_necrosis(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """A nucleus-free granular area, dusky, with dust of broken nuclei."""
    region = _blob(canvas, name, site, 0.21, strength)
    dust = _crowd(canvas, "debris", region, rng)
    blend(canvas.h, region, np.maximum(0.34 + 0.05 * _noise(canvas, canvas.assets.fine, region, rng), dust), strength)
    blend(canvas.e, region, 0.95 + 0.16 * _noise(canvas, canvas.assets.fine, region, rng), strength)


def paint_mucin(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """A pool of pale blue-grey mucin with faint strands."""
    region = _blob(canvas, name, site, 0.19, strength)
    strands = draw_fibres(canvas.assets, region.u, region.v, site[2], int(rng.integers(BANK)), 1.1)
    blend(canvas.h, region, 0.38 + 0.10 * strands, strength)
    blend(canvas.e, region, 0.0, strength)


def paint_hemorrhage(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """Red blood cells lying side by side outside vessels."""
    region = _blob(canvas, name, site, 0.18, strength)
    cells = _crowd(canvas, "erythrocyte", region, rng)
    blend(canvas.h, region, 0.0, strength)
    blend(canvas.e, region, 0.12, strength)
    blend(canvas.b, region, 0.45 + 0.9 * cells, strength)


def paint_lymphocytes(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """A dense crowd of small, round, dark nuclei."""
    region = _blob(canvas, name, site, 0.19, strength)
    crowd = 2.1 * _crowd(canvas, "lymphocyte", region, rng)
    blend(canvas.h, region, np.maximum(crowd, 0.12), strength)
    blend(canvas.e, region, 0.35, strength)


def paint_cellularity(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """Crowded nuclei of ordinary size in basophilic cytoplasm."""
    region = _blob(canvas, name, site, 0.22, strength)
    crowd = 1.2 * _crowd(canvas, "packed", region, rng)
    blend(canvas.h, region, np.maximum(crowd, 0.48), strength)
    blend(canvas.e, region, 0.55, strength)


def paint_pleomorphism(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """Huge vesicular nuclei of unequal size with prominent nucleoli, in pale cytoplasm."""
    region = _blob(canvas, name, site, 0.21, strength)
    count = 3 if strength < 0.7 else 5
    turn = site[2] + 2 * math.pi * (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / min(count, 4)
    out = (np.where(np.arange(count) < 4, 0.66, 0.0) + rng.uniform(-0.08, 0.08, count)) * region.radius
    points = np.stack([site[0] + out * np.cos(turn), site[1] + out * np.sin(turn)], 1)  # a ring, the fifth inside it
    at = (points * canvas.assets.size).astype(int) - (region.cols.start, region.rows.start)
    huge = np.zeros_like(region.w)
    stamp(huge, canvas.assets.sprites["giant"], at, rng.integers(0, BANK, count), rng.uniform(1.0, 1.5, count))
    blend(canvas.h, region, np.maximum(huge, 0.06), strength)
    blend(canvas.e, region, 0.30, strength)


def paint_malformed_glands(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """A cribriform gland: one sheet of epithelium with several punched-out lumens."""
    region = _blob(canvas, name, site, 0.21, strength)
    sheet = np.maximum(0.95 * _crowd(canvas, "cell", region, rng), 0.35)
    tone = np.full_like(sheet, 0.75)
    angles = 2 * math.pi * (np.arange(4) + rng.uniform(-0.15, 0.15, 4)) / 4 + site[2]
    for turn in angles.tolist():
        u, v = region.u - 0.48 * math.cos(turn), region.v - 0.48 * math.sin(turn)
        hole = clip_unit((0.27 - np.sqrt(u * u + v * v)) / 0.07)
        sheet *= 1 - hole
        tone *= 1 - hole
    blend(canvas.h, region, sheet, strength)
    blend(canvas.e, region, tone, strength)


def paint_calcification(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """Two laminated, deep blue concretions, each in a crack."""
    for side in (-1, 1):
        x = site[0] + side * 0.085 * math.cos(site[2])
        y = site[1] + side * 0.085 * math.sin(site[2])
        radius = 0.078 * (0.45 + 0.55 * strength) * float(rng.uniform(0.92, 1.08))
        region = cut_region(canvas.assets, x, y, radius, 0.0, 0.15)
        _open(canvas, name, region)
        d = region.d + 0.09 * _noise(canvas, canvas.assets.fine, region, rng)
        stone = clip_unit((0.78 - d) * 8) * (2.3 + 0.6 * np.cos(9.5 * d))
        blend(canvas.h, region, stone, strength)
        blend(canvas.e, region, 0.02, strength)


def paint_mitoses(canvas: Canvas, name: str, site: Site, strength: float, rng: np.random.Generator) -> None:
    """Three dividing cells, each a dark plate in cleared cytoplasm."""
    for turn in range(3):
        angle = site[2] + 2 * math.pi * turn / 3 + float(rng.uniform(-0.3, 0.3))
        x, y = site[0] + 0.095 * math.cos(angle), site[1] + 0.095 * math.sin(angle)
        region = cut_region(canvas.assets, x, y, 0.066 * (0.45 + 0.55 * strength), 0.0, 0.3)
        _open(canvas, name, region)
        tilt = float(rng.uniform(0, math.pi))
        along = region.u * math.cos(tilt) + region.v * math.sin(tilt)
        off = region.v * math.cos(tilt) - region.u * math.sin(tilt)
        plate = clip_unit((1 - np.sqrt((along / 0.72) ** 2 + (off / 0.27) ** 2)) * 3 + 0.4)
        blend(canvas.h, region, 2.8 * plate, strength)
        blend(canvas.e, region, 0.16 + 0.5 * plate, strength)


PAINTERS: dict[str, Painter] = {  # drawn in this order: what may cover much first, small things last
    "stromal fibrosis": paint_fibrosis,
    "necrosis": paint_necrosis,
    "mucin": paint_mucin,
    "high cellularity": paint_cellularity,
    "malformed glands": paint_malformed_glands,
    "nuclear pleomorphism": paint_pleomorphism,
    "hemorrhage": paint_hemorrhage,
    "lymphocytic infiltrate": paint_lymphocytes,
    "calcification": paint_calcification,
    "mitotic figures": paint_mitoses,
}
