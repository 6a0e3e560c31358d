"""A trained system behind rows of plain values, as a loaded model is asked: one row, one question.

    open_generator({"medim": Path("models/medim"), "vqgan": Path("models/vqgan")}, settings).predict(
        [{"task": "report_to_image", "prompt": "chest x-ray", "report": "the heart is large.", "seed": 1}])

Each answer is a whole pair: what the row gave and what the system made of it.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from medim.diffusion.settings import SamplerSettings
from medim.pairs import PROMPT_END, Pair, decode_png, encode_png
from medim.system_loading import load_system
from medim.systems import TASKS, Sample, System

MODEL, VQGAN = "medim", "vqgan"  # names of the two folders
DATASET = "served"  # what answers say instead of a dataset's name
INPUTS = {  # column -> (type, whether every row needs it)
    "task": ("string", True),
    "seed": ("long", True),
    "prompt": ("string", False),
    "report": ("string", False),
    "image": ("string", False),
}
OUTPUTS = {"task": "string", "report": "string", "prompt": "string", "image": "string", "seed": "long"}
GIVEN = {"report_to_image": ("prompt", "report"), "image_to_report": ("image",), "joint": ()}  # task -> what it needs
MAX_SEED = 2**63 - 1

Row = Mapping[str, Any]


class Generator:
    """Answers rows with a system, at most `chunk` of them at once."""

    def __init__(self, system: System, chunk: int) -> None:
        self.system, self.chunk = system, chunk

    def predict(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """One answer a row, in their order: task, report, prompt, image (PNG bytes), seed.

        Args:
            rows: `task` (one of TASKS) and `seed` (0 … 2**63 - 1), and what the task starts from: `prompt` ("chest
                x-ray") and `report`, or `image` (a square picture of the training pictures' size: bytes of an image
                file, or the same in base64), or nothing. What a row does not give is None, NaN, "" or left out. An
                answer depends on its row alone, and not on the rows beside it.

        Raises:
            ValueError: names the row (counted from 0) and the column.
        """
        pairs = [_pair(row, number, self.system.tasks) for number, row in enumerate(rows)]
        answers: dict[int, dict[str, Any]] = {}
        for task in TASKS:
            asked = [number for number, row in enumerate(rows) if row["task"] == task]
            for start in range(0, len(asked), self.chunk):
                some = asked[start : start + self.chunk]
                _same_size(pairs, some, task)
                for number, sample in zip(some, self._ask(task, rows, pairs, some), strict=True):
                    answers[number] = _answer(sample, pairs[number])
        return [answers[number] for number in range(len(rows))]

    def _ask(self, task: str, rows: Sequence[Row], pairs: Sequence[Pair], some: Sequence[int]) -> list[Sample]:
        seeds = [int(rows[number]["seed"]) for number in some]
        try:
            return self.system.generate(task, DATASET, [pairs[number] for number in some], seeds)
        except ValueError as error:
            names = ", ".join(map(str, some))
            columns = " and ".join(GIVEN[task]) or "seed"
            raise ValueError(f"{task}: rows {names}, column {columns}: {error}") from error


def open_generator(folders: Mapping[str, Path], settings: Mapping[str, Any]) -> Generator:
    """A generator on the GPU where there is one, else on the CPU.

    Args:
        folders: MODEL -> folder of a trained system, VQGAN -> folder of the image tokenizer.
        settings: values of params.yaml:generate; `sampler`, `sampler_of` and `sampler_of_model` are laid over one
            another as the stage `generate` does, and `chunk` is read.

    Raises:
        FileNotFoundError: a folder is not whole.
        TypeError: a sampler's setting is missing, or one is there that it does not have.
    """
    mine = settings["sampler_of_model"].get(MODEL, {})
    sampler_of = {
        task: SamplerSettings(**settings["sampler"] | settings["sampler_of"].get(task, {}) | mine) for task in TASKS
    }
    system = load_system(
        folders[MODEL], vqgan=folders[VQGAN], sampler=SamplerSettings(**settings["sampler"] | mine),
        sampler_of=sampler_of, device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )  # fmt: skip
    return Generator(system, settings["chunk"])


def _pair(row: Row, number: int, tasks: Sequence[str]) -> Pair:
    """What a row gives, as a pair whose other parts are empty."""
    place = f"row {number}, column"
    task = row.get("task")
    if task not in tasks:
        raise ValueError(f"{place} 'task': got {task!r}; this model answers {', '.join(tasks)}")
    needs, seed = GIVEN[str(task)], row.get("seed")
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) <= MAX_SEED:
        raise ValueError(f"{place} 'seed': expected a whole number from 0 to 2**63 - 1, got {seed!r}")
    for column in ("prompt", "report", "image"):
        given = not _is_missing(row.get(column))
        if column in needs and not given:
            raise ValueError(f"{place} {column!r}: {task} starts from it, and it is empty")
        if given and column not in needs:
            raise ValueError(f"{place} {column!r}: {task} does not start from it; leave it empty")
    texts = {column: _text(row, column, place) for column in ("prompt", "report") if column in needs}
    image = _picture(row["image"], f"{place} 'image'") if task == "image_to_report" else b""
    return Pair(str(number), "", "", DATASET, "", image, texts.get("prompt", ""), texts.get("report", ""))


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str | bytes) and not value)
    )


def _text(row: Row, column: str, place: str) -> str:
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"{place} {column!r}: expected a text, got {type(value).__name__}")
    if column == "prompt" and PROMPT_END in value:
        raise ValueError(f"{place} 'prompt': may not hold {PROMPT_END!r}, got {value!r}")
    return value


def _picture(value: Any, place: str) -> bytes:
    """PNG bytes (RGB, square) of an image file's bytes, or of the same in base64."""
    if isinstance(value, str):
        value = _tried(
            lambda: base64.b64decode(value, validate=True), (binascii.Error, ValueError), f"{place}: no base64"
        )
    if not isinstance(value, bytes | bytearray):
        raise ValueError(f"{place}: expected the bytes of a picture or base64, got {type(value).__name__}")
    pixels = _tried(lambda: decode_png(bytes(value)), (OSError, ValueError), f"{place}: no picture")
    if pixels.shape[0] != pixels.shape[1]:
        raise ValueError(f"{place}: expected a square picture, got {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return encode_png(pixels)


def _tried(read: Callable[[], Any], errors: tuple[type[Exception], ...], place: str) -> Any:
    try:
        return read()
    except errors as error:
        raise ValueError(f"{place} ({error})") from error


def _same_size(pairs: Sequence[Pair], some: Sequence[int], task: str) -> None:
    """Pictures that are read at once have one size."""
    if task != "image_to_report":
        return
    sides = {number: len(decode_png(pairs[number].image)) for number in some}
    for number, side in sides.items():
        if side != sides[some[0]]:
            raise ValueError(
                f"row {number}, column 'image': {side} pixels a side, row {some[0]} has {sides[some[0]]}; "
                "the model reads pictures of its training pictures' size"
            )


def _answer(sample: Sample, given: Pair) -> dict[str, Any]:
    """The row of OUTPUTS."""
    return {
        "task": sample.task,
        "report": given.report if sample.report is None else sample.report,
        "prompt": sample.prompt,
        "image": given.image if sample.image is None else encode_png(sample.image),
        "seed": sample.seed,
    }
