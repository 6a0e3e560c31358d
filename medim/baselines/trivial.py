"""The rules that every trained system must beat: constant, random training pair, nearest neighbour.

They see the training pairs of all datasets and answer each question for one dataset:

    row                       image_to_report            report_to_image            joint
    constant                  the central report         its picture                the central pair
    random training pair      a training report          a training picture         a training pair
    nearest neighbour         report of the nearest      picture of the nearest     -
                              training picture           training report

Nearest picture: Euclidean, in the 64 leading principal components of the pixels. Nearest report: cosine of TF-IDF over
words. Central report: the one with the highest mean cosine to all others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medim.baselines.base import Method, Trained, TrainInputs
from medim.baselines.report_index import ReportIndex
from medim.pairs import Pair, decode_png, load_images, read_pairs
from medim.systems import JOINT_DATASET, Sample

CONSTANT, RANDOM, NEAREST = "trivial: constant", "trivial: random training pair", "trivial: nearest neighbour"
COMPONENTS = 64


class PictureIndex:
    """Leading principal components of the training pictures."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        flat = images.reshape(len(images), -1).astype(np.float32) / 255
        self.mean = flat.mean(axis=0)
        centred = flat - self.mean
        components = min(COMPONENTS, *centred.shape)
        draw = np.random.default_rng(0).standard_normal((centred.shape[1], 2 * components)).astype(np.float32)
        basis, _ = np.linalg.qr(centred.T @ (centred @ draw))  # randomised range finder, one power iteration
        _, _, right = np.linalg.svd(centred @ basis, full_matrices=False)
        self.basis = basis @ right[:components].T
        self.points = centred @ self.basis

    def nearest(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Index of the nearest training picture for each of (N, S, S, 3) uint8."""
        queries = (images.reshape(len(images), -1).astype(np.float32) / 255 - self.mean) @ self.basis
        gaps = (queries**2).sum(1)[:, None] - 2 * queries @ self.points.T + (self.points**2).sum(1)[None]
        return np.asarray(gaps.argmin(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Memory:
    """The training pairs of one dataset with their indices."""

    pairs: list[Pair]

    @cached_property
    def reports(self) -> ReportIndex:
        """Index over the reports."""
        return ReportIndex([pair.report for pair in self.pairs])

    @cached_property
    def pictures(self) -> PictureIndex:
        """Index over the pictures."""
        return PictureIndex(load_images(self.pairs))

    @cached_property
    def central(self) -> Pair:
        """The pair of the central report."""
        return self.pairs[self.reports.central()]


class Trivial:
    """The three rules behind the interface of `medim.systems.System`."""

    tasks = ("report_to_image", "image_to_report", "joint")

    def __init__(self, memories: dict[str, Memory], fallback: dict[str, str]) -> None:
        self.memories, self.fallback = memories, fallback

    def generate(self, task: str, dataset: str, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Sample]:
        """See `medim.systems.System`; a dataset without training pairs answers from its stand-in's (`fallback`)."""
        if dataset == JOINT_DATASET:
            return self._joint(seeds)
        memory = self.memories[self.fallback.get(dataset, dataset)]
        if task == "image_to_report":
            nearest = memory.pictures.nearest(load_images(pairs))
        else:
            nearest = memory.reports.nearest([pair.report for pair in pairs])
        draws = [memory.pairs[int(np.random.default_rng(seed).integers(len(memory.pairs)))] for seed in seeds]
        answers = {
            CONSTANT: [memory.central] * len(pairs),
            RANDOM: draws,
            NEAREST: [memory.pairs[index] for index in nearest],
        }
        return [
            _sample(row, task, dataset, pair.pair_id, seed, found)
            for row, chosen in answers.items()
            for pair, seed, found in zip(pairs, seeds, chosen, strict=True)
        ]

    def _joint(self, seeds: Sequence[int]) -> list[Sample]:
        names = sorted(self.memories)
        out = []
        for number, seed in enumerate(seeds):
            memory = self.memories[names[number % len(names)]]
            drawn = memory.pairs[int(np.random.default_rng(seed).integers(len(memory.pairs)))]
            out.append(_sample(CONSTANT, "joint", JOINT_DATASET, f"joint-{seed}", seed, memory.central))
            out.append(_sample(RANDOM, "joint", JOINT_DATASET, f"joint-{seed}", seed, drawn))
        return out


def _sample(row: str, task: str, dataset: str, pair_id: str, seed: int, found: Pair) -> Sample:
    picture = decode_png(found.image) if task != "image_to_report" else None
    report = found.report if task != "report_to_image" else None
    return Sample(row, task, dataset, pair_id, seed, picture, found.prompt, report, 0)


def train(inputs: TrainInputs) -> Trained:
    """Remember the training pairs. settings: `fallback`, dataset without training pairs -> the one that stands in."""
    inputs.out.mkdir(parents=True, exist_ok=True)
    for dataset in inputs.datasets:
        shutil.copyfile(inputs.pairs[dataset]["train"], inputs.out / f"{dataset}.parquet")
    config = {
        "system": "medim.baselines.trivial",
        "datasets": list(inputs.datasets),
        "fallback": dict(inputs.settings["fallback"]),
    }
    (inputs.out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    return Trained(0, 0, 0)


def load_system(folder: Path, **_: object) -> Trivial:
    """The rules over the pairs in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    memories = {name: Memory(read_pairs(folder / f"{name}.parquet")) for name in config["datasets"]}
    return Trivial(memories, config["fallback"])


METHOD = Method("trivial", "trivial", "trivial", "the rules above", train)
