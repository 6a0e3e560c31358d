"""Weights that others published: read from their files, checked by name and shape, put into a module."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PICKLED = (".pth", ".pt", ".bin")
WRAPPERS = ("model", "state_dict")  # keys under which training scripts store the weights
_SCALAR = np.float64(0).__reduce__()[0]  # what rebuilds a NumPy scalar
NUMPY_SCALARS: list[Any] = [  # some published pickles hold such beside the weights
    _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype, codecs.encode,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)),
]  # fmt: skip


def first_names(module: nn.Module) -> dict[str, str]:
    """Each name of a module's state -> the first name of that very tensor (a tied weight has several)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in module.state_dict(keep_vars=True).items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a .safetensors, .pth, .pt or .bin file, or of a folder with one or more of a kind.

    A pickle is read without running any code in it. `module.` in front of all names (of a parallel training) goes.

    Raises:
        FileNotFoundError: nothing of the kind is there; says what belongs there.
        ValueError: a file of another kind, or one that holds no weights.
    """
    if path.is_dir():
        parts = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        if not parts:
            raise FileNotFoundError(f"{path} holds neither *.safetensors nor pytorch_model*.bin: place them there")
        return {name: value for part in parts for name, value in read_weights(part).items()}
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: place the published weights there, or set `start: null`")
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix not in PICKLED:
        raise ValueError(f"{path}: weights are .safetensors, {', '.join(PICKLED)}, got {path.suffix!r}")
    with torch.serialization.safe_globals(NUMPY_SCALARS):
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    weights = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(f"{path} holds no tensors by name, but {sorted(map(str, found))[:5]}")
    parallel = all(name.startswith("module.") for name in weights)
    return under(weights, "module.") if parallel else weights


def under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands under a prefix, named without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


@torch.no_grad()
def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> int:
    """Copy all of a module's state from `weights`, whose names are the module's; returns the number of tensors.

    Of a tied weight one name is enough.

    Raises:
        ValueError: a name is missing, too many, or has another shape; shows the first three, and `source`.
    """
    state, first = module.state_dict(), first_names(module)
    given = {first[name]: value for name, value in weights.items() if name in first}
    wrong = [f"{name} is missing" for name in state if first[name] not in given]
    wrong += [f"{name} has no place" for name in weights if name not in first]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in state.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"{source} does not fit the sizes in params.yaml ({len(wrong)} places): {'; '.join(wrong[:3])}"
        )
    for name, value in state.items():
        value.copy_(given[first[name]])
    return len(weights)
