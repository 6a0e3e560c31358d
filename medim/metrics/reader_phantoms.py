"""What the finding reader learns from: phantoms drawn into memory, and the batches they are served in.

Shapes: N pictures, S picture side, L labels and F findings (labels without side) of a domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medim.data.domain import STATES, Domain, labels_of, without_side
from medim.training import step_seed

CELL = 8  # pixels a side of a cell of `Drawn.places`: the strides of the reader's trunk
UNLABELLED = -100  # padding of `Drawn.states`, ignored by cross entropy


def findings_of(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Labels without their side, in order, once."""
    return tuple(dict.fromkeys(map(without_side, labels)))


@dataclass(frozen=True)
class Drawn:
    """Phantoms in memory: images (N, S, S, 3) uint8, domain (N,) int64, states (N, L max) int64, padded.

    `places` (N, F max, S / CELL, S / CELL) uint8: state of a finding, of either side, in the cells that it covers
    at least half as much as the cell it covers most, so that thin and small findings have cells too; 0 elsewhere.
    """

    images: Tensor
    domain: Tensor
    states: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, index: Tensor) -> Drawn:
        """The pictures of an index (M,)."""
        return Drawn(self.images[index], self.domain[index], self.states[index], self.places[index])


def draw_phantoms(domains: Mapping[str, Domain], seed: int, patient: int, count: int, size: int) -> Drawn:
    """Draw `count` pictures a domain at `size` pixels, patients counted from `patient`."""
    width = max(len(labels_of(domain.findings)) for domain in domains.values())
    total, cells = count * len(domains), size // CELL
    states = np.full((total, width), UNLABELLED, np.int64)
    images = np.empty((total, size, size, 3), np.uint8)
    places = np.zeros((total, width, cells, cells), np.uint8)
    for number, domain in enumerate(domains.values()):
        labels = labels_of(domain.findings)
        findings = findings_of(labels)
        for row, scene in zip(
            range(number * count, (number + 1) * count), _scenes(domain, seed, patient), strict=False
        ):
            drawn, truth = domain.render(scene, size), domain.truth(scene)
            images[row] = drawn.image
            states[row, : len(labels)] = [STATES.index(truth.get(label, "absent")) for label in labels]
            for label, mask in drawn.masks.items():
                cover = mask[: cells * CELL, : cells * CELL].reshape(cells, CELL, cells, CELL).mean((1, 3))
                state = STATES.index(truth.get(label, "absent")) * ((cover > 0) & (cover >= cover.max() / 2))
                here = places[row, findings.index(without_side(label))]
                np.maximum(here, state, out=here, casting="unsafe")
    owner = torch.arange(len(domains)).repeat_interleave(count)
    return Drawn(torch.from_numpy(images), owner, torch.from_numpy(states), torch.from_numpy(places))


def _scenes(domain: Domain, seed: int, patient: int) -> Iterator[Mapping[str, Any]]:
    while True:
        yield from domain.studies(seed, patient)
        patient += 1


def epochs(drawn: Drawn, batch_size: int, seed: int, accumulate: int) -> Callable[[int, int], Drawn]:
    """Batches as `fit` wants them: each epoch is a new permutation; a pure function of (step, part)."""
    per_part = max(1, batch_size // accumulate)
    if len(drawn) < per_part:
        raise ValueError(
            f"{len(drawn)} phantoms are fewer than a batch of {per_part}: raise pictures or lower batch_size"
        )
    per_epoch = len(drawn) // per_part

    def batch(step: int, part: int) -> Drawn:
        epoch, place = divmod(step * accumulate + part, per_epoch)
        order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(step_seed(seed, epoch)))
        return drawn.rows(order[place * per_part : (place + 1) * per_part])

    return batch
