"""A generator that answers prompts with freshly drawn phantoms, and every third time with a wrong picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medim.data import get_domain
from medim.pairs import Pair, decode_png


@dataclass(frozen=True)
class Redrawn:
    """Finished pairs."""

    pairs: list[Pair]
    pictures: list[Pair]
    prompts: list[str]
    evaluations: list[int]

    @property
    def images(self) -> np.ndarray:
        return np.stack([decode_png(pair.image) for pair in self.pictures])

    @property
    def reports(self) -> list[str]:
        return [pair.report for pair in self.pairs]


class Redrawing:
    """Draws the pair of a patient of its seed; dies after a number of calls."""

    row = "Redrawing"

    def __init__(self, dataset: str, size: int = 32, lives: int = 999) -> None:
        self.dataset, self.size, self.lives = dataset, size, lives
        self.asked: list[int] = []

    def prompted(self, prompts: Sequence[str], seeds: Sequence[int]) -> Redrawn:
        if not self.lives:
            raise RuntimeError("killed")
        self.lives -= 1
        self.asked.append(len(prompts))
        domain = get_domain(self.dataset)
        pairs = [next(domain.pairs(1, seed % 1000 + 50_000_000, self.size)) for seed in seeds]
        others = [next(domain.pairs(2, seed % 1000 + 50_000_000, self.size)) for seed in seeds]
        shown = [other if seed % 3 == 0 else pair for pair, other, seed in zip(pairs, others, seeds, strict=True)]
        return Redrawn(pairs, shown, list(prompts), [5] * len(prompts))
