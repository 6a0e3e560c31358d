"""The prior of a report writer: the folder (config.json, model.safetensors) that its pretraining leaves.

A later training takes the words and weights from there, of networks of the same sizes only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from medim.baselines.weight_files import fill, under

PRIOR = "prior"  # of the folder, inside that of the finished training


@dataclass(frozen=True)
class Prior:
    """What a training starts from."""

    folder: Path
    config: Mapping[str, Any]  # the writer's, see `ReportWriter.config`
    weights: Mapping[str, Tensor]
    examples: int  # pairs that its training saw

    def check_sizes(self, config: Mapping[str, Any], places: Sequence[str]) -> None:
        """Compare with a writer that is to start from it.

        Args:
            config: the writer's, see `ReportWriter.config`.
            places: keys of both, a dot between one and those inside it.

        Raises:
            ValueError: they differ at some; names each value.
        """
        own = json.loads(json.dumps(config))
        pairs = {place: (_at(self.config, place), _at(own, place)) for place in places}
        wrong = [f"{place} is {theirs} there, {ours} here" for place, (theirs, ours) in pairs.items() if theirs != ours]
        if wrong:
            raise ValueError(
                f"{self.folder} is the prior of other sizes ({'; '.join(wrong)}): give both trainings the same "
                f"(params.yaml:train_baseline.settings) and run `dvc repro train_baseline@{self.folder.parent.name}`"
            )

    def fill(self, module: nn.Module, part: str | None = None) -> None:
        """Copy its weights into a writer, or into the part of that name of one.

        Raises:
            ValueError: see `medim.baselines.weight_files.fill`.
        """
        fill(module, self.weights if part is None else under(self.weights, f"{part}."), str(self.folder))


def read_prior(folder: Path, system: str) -> Prior:
    """The prior in a folder.

    Args:
        folder: what `medim.baselines.report_writer.save_writer` wrote.
        system: module of the method that wants it.

    Raises:
        FileNotFoundError: names the file that is missing.
        ValueError: it is another method's.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: run `dvc repro train_baseline@{folder.parent.name}` with a pretraining "
                f"(params.yaml:train_baseline.settings)"
            )
    config = json.loads((folder / "config.json").read_text())
    if config["system"] != system:
        raise ValueError(f"{folder} is the prior of {config['system']}, {system} wants one of its own pretraining")
    optim = config["optim"]
    examples = optim["steps"] * optim["batch_size"]
    return Prior(folder, config["writer"], load_file(folder / "model.safetensors"), examples)


def _at(config: Mapping[str, Any], place: str) -> Any:
    found: Any = config
    for key in place.split("."):
        found = found[key]
    return found
