"""Drawing of phantom histology: tissue of an organ, ten findings on it, and the colours of H&E.

A tile is three concentration maps, hematoxylin, eosin and blood, turned into RGB by the Beer-Lambert law
I = I0 exp(-sum_s c_s od_s), with the optical densities of Ruifrok & Johnston, "Quantification of histochemical staining
by color deconvolution" (2001), as means; each patient's differ, as slides of different laboratories do. Blood gets a
vector of its own (deviation: in a real slide it is eosin, but its red differs from stroma's pink).
Lengths are fractions of the tile's side; a tile of 64 pixels shows some 100 µm. A finding changes the maps inside its
own region only, so that the same tile with and without it is equal everywhere else, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medim.data.domain import Rendered

Map = NDArray[np.float32]

HEMATOXYLIN, EOSIN, BLOOD = (0.650, 0.704, 0.286), (0.16, 0.86, 0.44), (0.09, 0.76, 0.72)
BANK = 24  # pre-drawn variants of each nucleus and noise field
CROWDS = 8  # pre-drawn variants of each crowd
SPACING = {"lymphocyte": 0.051, "erythrocyte": 0.037, "debris": 0.048, "packed": 0.071, "cell": 0.064}  # of crowds


@dataclass(frozen=True)
class Nucleus:
    """A kind of nucleus. Radii in 64ths of the tile; `texture`: contrast of the chromatin, `rim`: of the membrane."""

    radius: tuple[float, float]
    aspect: tuple[float, float]
    texture: float
    rim: float
    nucleolus: float


NUCLEI = {
    "cell": Nucleus((2.2, 2.9), (1.0, 1.45), 0.25, 0.25, 0.0),
    "packed": Nucleus((2.3, 2.8), (1.0, 1.3), 0.2, 0.15, 0.0),
    "lymphocyte": Nucleus((1.45, 1.7), (1.0, 1.12), 0.05, 0.0, 0.0),
    "erythrocyte": Nucleus((1.45, 1.7), (1.0, 1.12), 0.05, 0.0, 0.0),
    "spindle": Nucleus((2.0, 2.5), (3.2, 4.5), 0.15, 0.0, 0.0),
    "giant": Nucleus((4.2, 6.0), (1.0, 1.5), 0.35, 0.5, 1.0),
    "debris": Nucleus((0.6, 0.9), (1.0, 1.3), 0.0, 0.0, 0.0),
}


@dataclass(frozen=True)
class Organ:
    """How an organ's tissue looks: some `structures` of a `radius`, hollow up to `lumen` radii, filled with eosin."""

    structures: int
    radius: float
    lumen: float
    filling: float
    lined: bool  # by a ring of nuclei: glands, tubules, follicles; else by a thin wall: fat, alveoli
    density: float  # share of the grid of nuclei that is kept
    eosin: float
    fibres: float


ORGANS = {
    "colon": Organ(2, 0.21, 0.35, 0.02, True, 0.55, 0.50, 0.05),
    "breast": Organ(3, 0.15, 0.90, 0.00, False, 0.45, 0.55, 0.14),
    "prostate": Organ(2, 0.22, 0.62, 0.02, True, 0.40, 0.58, 0.10),
    "lung": Organ(4, 0.17, 0.88, 0.00, False, 0.40, 0.45, 0.03),
    "kidney": Organ(4, 0.14, 0.30, 0.08, True, 0.35, 0.62, 0.02),
    "liver": Organ(0, 0.10, 0.50, 0.00, False, 0.62, 0.70, 0.02),
    "stomach": Organ(3, 0.16, 0.38, 0.03, True, 0.50, 0.48, 0.04),
    "thyroid": Organ(3, 0.18, 0.74, 0.72, True, 0.35, 0.45, 0.04),
    "skin": Organ(0, 0.10, 0.50, 0.00, False, 0.45, 0.62, 0.16),
}


@dataclass(frozen=True)
class Assets:
    """What is drawn once per tile size S: coordinates (S, S) in [0, 1), noise (BANK, S, S), sprites (BANK, P, P).

    `crowds` (CROWDS, S, S) are whole tiles full of one kind of nucleus, of which a finding shows a window.
    """

    size: int
    x: Map
    y: Map
    coarse: Map  # standard deviation 1, wavelength about a fifth of the tile
    fine: Map  # standard deviation 1, wavelength about 3/64 of the tile
    sensor: Map  # (BANK, S, S, 1) grey levels
    sprites: Mapping[str, Map]
    crowds: Mapping[str, Map]


@lru_cache(maxsize=8)
def get_assets(size: int) -> Assets:
    """The assets of a tile size, the same in every process.

    Raises:
        ValueError: size outside 32..512.
    """
    if not 32 <= size <= 512:
        raise ValueError(
            f"tiles are drawn at 32 to 512 pixels, got {size}: change `size` of the dataset in params.yaml"
        )
    rng = np.random.default_rng(64)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    sprites = {name: _draw_sprites(rng, kind, size) for name, kind in NUCLEI.items()}
    return Assets(
        size,
        np.broadcast_to(axis, (size, size)),
        np.broadcast_to(axis[:, None], (size, size)),
        _smooth_noise(rng, size, 4.6),
        _smooth_noise(rng, size, 0.8),
        np.random.default_rng(size).normal(0, 2.0, (BANK, size, size, 1)).astype(np.float32),
        sprites,
        {name: _draw_crowds(rng, sprites[name], spacing, size) for name, spacing in SPACING.items()},
    )


def _smooth_noise(rng: np.random.Generator, size: int, sigma: float) -> Map:
    """(BANK, S, S) noise of standard deviation 1, at most 2.5 from 0, smoothed by `sigma` 64ths of the tile.

    Drawn at 64 pixels, then scaled: one scene looks the same at every size.
    """
    noise = ndimage.gaussian_filter(rng.standard_normal((BANK, 64, 64), np.float32), (0, sigma, sigma), mode="wrap")
    noise = np.clip(noise / noise.std((1, 2), keepdims=True), -2.5, 2.5)
    scaled: Map = ndimage.zoom(noise, (1, size / 64, size / 64), order=2, mode="grid-wrap", grid_mode=True)
    return scaled


def _draw_sprites(rng: np.random.Generator, kind: Nucleus, size: int) -> Map:
    """(BANK, P, P) hematoxylin of nuclei at subpixel offsets, angles in BANK equal steps of [0, pi)."""
    unit = size / 64
    radius, aspect = rng.uniform(*kind.radius, BANK) * unit, rng.uniform(*kind.aspect, BANK)
    half = math.ceil(kind.radius[1] * unit * math.sqrt(kind.aspect[1])) + 1
    angle = np.arange(BANK) * math.pi / BANK
    grid = np.arange(-half, half + 1)
    x = grid[None, None, :] - rng.uniform(-0.5, 0.5, (BANK, 1, 1))
    y = grid[None, :, None] - rng.uniform(-0.5, 0.5, (BANK, 1, 1))
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    stretch = np.sqrt(aspect)[:, None, None]
    bump = 0.10 * np.cos(3 * np.arctan2(y, x) + rng.uniform(0, 6.28, (BANK, 1, 1)))
    d = (
        np.hypot((x * cos + y * sin) / stretch, (y * cos - x * sin) * stretch) / radius[:, None, None]
        + bump * kind.texture
    )
    body = np.clip((1 - d) * radius[:, None, None] + 0.5, 0, 1)
    grain = np.random.default_rng(half).standard_normal(body.shape)
    noise = ndimage.gaussian_filter(grain, (0, 0.6 * unit, 0.6 * unit))
    noise = np.clip(noise / noise.std(), -2, 2) * kind.texture / 2
    inner = np.clip((0.85 - d) * 3, 0, 1)
    eye = np.exp(-((x - radius[:, None, None] / 4) ** 2 + y**2) / (1.1 * unit) ** 2)
    sprite = body * (1 + noise * inner - kind.rim * inner) + kind.nucleolus * eye * body
    return sprite.astype(np.float32)


def _draw_crowds(rng: np.random.Generator, sprites: Map, spacing: float, size: int) -> Map:
    """(CROWDS, S, S) nuclei of unequal darkness (mean 1) on a shaken hexagonal grid."""
    count = math.ceil(1 / spacing) + 2
    rows, cols = np.divmod(np.arange(count * count), count)
    grid = np.stack([cols + 0.5 * (rows % 2) - 1, 0.92 * rows - 0.5], 1)
    crowds = np.zeros((CROWDS, size, size), np.float32)
    for crowd in crowds:
        at = ((grid + rng.uniform(-0.2, 0.2, grid.shape)) * spacing * size).astype(int)
        stamp(crowd, sprites, at, rng.integers(0, BANK, len(at)), rng.uniform(0.85, 1.15, len(at)))
    return crowds


@dataclass
class Canvas:
    """A tile in the making: hematoxylin, eosin and blood maps (S, S), and the masks of what was drawn."""

    assets: Assets
    h: Map
    e: Map
    b: Map
    masks: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True)
class Region:
    """A window of the tile: `w` in [0, 1], zero outside the region.

    `u`, `v` are coordinates and `d` the distance from the centre in units of the radius; d = 1 is the outline.
    """

    rows: slice
    cols: slice
    w: Map
    d: Map
    u: Map
    v: Map
    radius: float

    @property
    def window(self) -> tuple[slice, slice]:
        """The index of the window in a map of the tile."""
        return self.rows, self.cols


def clip_unit(x: NDArray[Any]) -> NDArray[Any]:
    """x clipped to [0, 1]; on small windows several times faster than `np.clip`."""
    clipped: NDArray[Any] = np.minimum(np.maximum(x, 0), 1)
    return clipped


def cut_region(assets: Assets, x: float, y: float, radius: float, wobble: float = 0.0, edge: float = 0.25) -> Region:
    """A round region with an irregular outline (`wobble`) and a soft border of `edge` radii."""
    size, reach = assets.size, radius * (1 + 2.5 * wobble)
    rows = slice(max(0, int((y - reach) * size)), min(size, int((y + reach) * size) + 1))
    cols = slice(max(0, int((x - reach) * size)), min(size, int((x + reach) * size) + 1))
    u, v = (assets.x[rows, cols] - np.float32(x)) / radius, (assets.y[rows, cols] - np.float32(y)) / radius
    d = np.sqrt(u * u + v * v)
    if wobble:
        d += wobble * assets.coarse[int(x * 997) % BANK, rows, cols]
    w = clip_unit((1 - d) / edge)
    return Region(rows, cols, w, d, u, v, radius)


def stamp(
    target: Map, sprites: Map, at: NDArray[np.int64], kinds: NDArray[np.int64], dark: NDArray[np.float64]
) -> None:
    """Draw sprites `kinds` (n,), times `dark` (n,), centred at `at` (n, 2: column, row) into `target` in place.

    At each pixel the darkest stays. One scatter of all their pixels onto a padded copy: at 64 pixels five times faster
    than a loop over windows.
    """
    side, (height, width) = sprites.shape[1], target.shape
    first = at + (side - side // 2)  # top left corner in the padded tile
    inside = ((first >= 0) & (first <= (width + side, height + side))).all(1)
    row = width + 2 * side
    padded = np.zeros((height + 2 * side, row), np.float32)
    offsets = (np.arange(side)[:, None] * row + np.arange(side)).ravel()
    pixels = (first[inside, 1] * row + first[inside, 0])[:, None] + offsets
    drawn = sprites[kinds[inside]] * dark[inside, None, None].astype(np.float32)
    np.maximum.at(padded.reshape(-1), pixels.ravel(), drawn.ravel())
    np.maximum(target, padded[side : side + height, side : side + width], out=target)


def draw_tile(
    scene: Mapping[str, Any], painters: Mapping[str, Callable[..., None]], size: int, noise: bool
) -> Rendered:
    """Draw a scene: tissue, then the findings in the order of `painters`, then stain and sensor noise."""
    assets = get_assets(size)
    canvas = draw_tissue(assets, ORGANS[scene["organ"]], scene["texture"], scene["tile"])
    for name, paint in painters.items():
        if name in scene["findings"]:
            x, y, angle, seed = scene["sites"][name]
            rng = np.random.default_rng(seed)
            paint(canvas, name, (x, y, angle), scene["findings"][name]["strength"], rng)
    image = _stain(canvas, scene["stain"])
    if noise:
        image += assets.sensor[scene["tile"] % BANK]
    np.clip(image, 0, 255, out=image)
    return Rendered(image.astype(np.uint8), canvas.masks)


def _stain(canvas: Canvas, stain: Mapping[str, Any]) -> Map:
    """(S, S, 3) intensities in grey levels by Beer-Lambert."""
    vectors = np.asarray([stain["hematoxylin"], stain["eosin"], BLOOD], np.float32)
    intensity: Map = np.stack([canvas.h, canvas.e, canvas.b], -1) @ -vectors
    np.exp(intensity, out=intensity)
    intensity *= np.float32(stain["light"])
    return intensity


def draw_tissue(assets: Assets, organ: Organ, texture: Mapping[str, float], seed: int) -> Canvas:
    """The tissue of an organ without findings: cytoplasm, fibres, glands or fat, nuclei."""
    rng = np.random.default_rng(seed)
    size, pick = assets.size, rng.integers(0, BANK, 5)
    h = 0.10 + 0.04 * assets.coarse[pick[0]]
    e = texture["eosin"] * organ.eosin + 0.08 * assets.coarse[pick[1]] + 0.07 * assets.fine[pick[2]]
    fibres = draw_fibres(assets, assets.x, assets.y, texture["angle"], int(pick[3]))
    e += organ.fibres * fibres * (1 + 0.6 * assets.coarse[pick[1]])
    e *= 1 - 0.55 * clip_unit(assets.coarse[pick[4]] - 0.9)  # clefts between cells
    canvas = Canvas(assets, h, e, np.zeros((size, size), np.float32))
    centres = [_draw_structure(canvas, organ, place) for place in _places(rng, organ)]
    points = _grid_points(rng, texture["density"] * organ.density)
    for x, y, radius in centres:
        points = points[(points[:, 0] - x) ** 2 + (points[:, 1] - y) ** 2 > (1.1 * radius) ** 2]
    if organ.lined:
        rings = [_ring_points(rng, *centre, organ.lumen) for centre in centres]
        points = np.concatenate([points, *rings])
    kind = "spindle" if organ.fibres > 0.12 else "cell"
    count = len(points)
    shapes = rng.integers(0, BANK, count)
    if kind == "spindle":  # nuclei of stroma lie along its fibres
        shapes = (shapes // 6 + int(texture["angle"] / math.pi * BANK)) % BANK
    at = (points * size).astype(int)
    np.maximum(canvas.h, 0, out=canvas.h)
    stamp(canvas.h, assets.sprites[kind], at, shapes, rng.uniform(0.85, 1.3, count))
    np.maximum(canvas.e, 0, out=canvas.e)
    return canvas


def draw_fibres(assets: Assets, x: Map, y: Map, angle: float, pick: int, waves: float = 9.0) -> Map:
    """Wavy streaks in [-1, 1] along `angle`, at the coordinates x, y (a window's or the tile's)."""
    across = (y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))) * np.float32(2 * math.pi * waves)
    rows, cols = x.shape
    streaks: Map = np.sin(across + 1.8 * assets.coarse[pick, :rows, :cols])
    return streaks


def _places(rng: np.random.Generator, organ: Organ) -> list[tuple[float, float, float]]:
    """(x, y, radius) of an organ's structures, one in each of some cells of a 2x2 grid: they seldom overlap."""
    if not organ.structures:
        return []
    cells = rng.permutation(4)[: organ.structures].tolist()
    jitter = rng.uniform(-0.09, 0.09, (organ.structures, 2)).tolist()
    radii = (organ.radius * rng.uniform(0.85, 1.15, organ.structures)).tolist()
    return [
        (0.25 + 0.5 * (c % 2) + j[0], 0.25 + 0.5 * (c // 2) + j[1], r)
        for c, j, r in zip(cells, jitter, radii, strict=True)
    ]


def _draw_structure(canvas: Canvas, organ: Organ, place: tuple[float, float, float]) -> tuple[float, float, float]:
    """A gland, tubule, follicle or vacuole: its wall, then its lumen."""
    x, y, radius = place
    wall = cut_region(canvas.assets, x, y, radius, 0.05, 0.15)
    hollow = clip_unit((organ.lumen - wall.d) / (0.2 * organ.lumen))
    whole = replace(wall, w=np.maximum(0.8 * wall.w, hollow))
    eosin = 0.45 if organ.lined else 0.75
    blend(canvas.e, whole, eosin + (organ.filling - eosin) * hollow, 1.0)
    blend(canvas.h, whole, (0.28 if organ.lined else 0.1) * (1 - hollow), 1.0)
    return place


def _grid_points(rng: np.random.Generator, keep: float) -> NDArray[np.float64]:
    """(n, 2) x, y of nuclei on a jittered 10x10 grid: irregular, yet they do not pile up."""
    cells = np.flatnonzero(rng.random(100) < keep)
    base = np.stack([cells % 10, cells // 10], 1) + 0.5
    points: NDArray[np.float64] = (base + rng.uniform(-0.38, 0.38, base.shape)) / 10
    return points


def _ring_points(rng: np.random.Generator, x: float, y: float, radius: float, lumen: float) -> NDArray[np.float64]:
    """(n, 2) x, y of the nuclei that line a gland, halfway between lumen and outline."""
    middle = radius * (0.55 + 0.42 * lumen)
    count = max(5, round(2 * math.pi * middle / 0.085))
    angle = 2 * math.pi * (np.arange(count) + rng.uniform(-0.2, 0.2, count)) / count
    return np.stack([x + middle * np.cos(angle), y + middle * np.sin(angle)], 1)


def blend(target: Map, region: Region, value: NDArray[np.floating[Any]] | float, alpha: float) -> None:
    """Move `target` towards `value` inside the region, by alpha where its weight is 1, in place."""
    view = target[region.window]
    view += np.float32(alpha) * region.w * (value - view)
