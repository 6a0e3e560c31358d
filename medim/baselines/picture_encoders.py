"""The vision transformers that report writers look through: their build, their pixels, their folders.

A folder (config.json, model.safetensors) holds a tower that was pretrained; any kind of tower is filled from any other
of the same sizes, since they are one network under different names (tower_names.py).

Letters: B pictures, S pixels a side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    BlipVisionConfig,
    BlipVisionModel,
    ViTConfig,
    ViTModel,
)

from medim.baselines.tower_names import from_timm, to_timm
from medim.baselines.weight_files import fill

FIRST_STD = 0.02  # of new weights (timm); transformers' configurations of BLIP and BLIP-2 say 1e-10, which never learns
SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "hidden_act", "layer_norm_eps",
)  # fmt: skip
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Kind:
    """A kind of tower, and the mean and deviation of each channel in [0, 1] that its released weights were given."""

    config: type[Any]
    model: type[Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    options: Mapping[str, Any]  # of the model beside the configuration


# BLIP and BLIP-2 normalise as CLIP; so does open_clip with BiomedCLIP-CXR, LLaVA-Rad's `vit`
KINDS = {
    "blip_vision_model": Kind(BlipVisionConfig, BlipVisionModel, CLIP_MEAN, CLIP_STD, {}),
    "blip_2_vision_model": Kind(Blip2VisionConfig, Blip2VisionModel, CLIP_MEAN, CLIP_STD, {}),
    "vit": Kind(ViTConfig, ViTModel, CLIP_MEAN, CLIP_STD, {"add_pooling_layer": False}),
}


def tower_config(kind: str, sizes: Mapping[str, Any]) -> Any:
    """The transformers configuration of a tower; `sizes` as its class takes them, new weights from N(0, FIRST_STD^2).

    Raises:
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"a picture encoder is one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind].config(**{"initializer_range": FIRST_STD, **sizes})


def build_tower(kind: str, sizes: Mapping[str, Any]) -> nn.Module:
    """An untrained tower; raises ValueError, see `tower_config`."""
    config = tower_config(kind, sizes)
    tower: nn.Module = KINDS[kind].model(config, **KINDS[kind].options)
    return tower


def to_tower(pictures: Tensor, config: Any) -> Tensor:
    """(B, 3, S, S) in [-1, 1] -> (B, 3, size, size) as the tower of a configuration wants them.

    Resized where its size is another one (bicubic, antialiased, as the released processors do), then normalised.
    """
    kind, pixels = KINDS[config.model_type], (pictures.float() + 1) / 2
    if pixels.shape[-1] != config.image_size:
        size = (config.image_size, config.image_size)
        pixels = interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(value, device=pixels.device)[:, None, None] for value in (kind.mean, kind.std))
    return (pixels - mean) / std


def save_encoder(tower: nn.Module, folder: Path) -> None:
    """Write config.json and model.safetensors of a tower."""
    config: Any = tower.config
    folder.mkdir(parents=True, exist_ok=True)
    described = {"kind": config.model_type, "sizes": {name: getattr(config, name) for name in SIZES}}
    (folder / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    save_file({name: value.contiguous() for name, value in tower.state_dict().items()}, folder / "model.safetensors")


def load_encoder(folder: Path) -> nn.Module:
    """The tower in a folder, in eval mode.

    Raises:
        FileNotFoundError: names the file that is missing.
    """
    described = _described(folder)
    tower = build_tower(described["kind"], described["sizes"])
    fill(tower, load_file(folder / "model.safetensors"), str(folder))
    return tower.eval()


def fill_tower(tower: nn.Module, folder: Path) -> int:
    """Fill a tower in place from a folder whose tower has the same sizes, of whatever kind; returns the tensors.

    Raises:
        FileNotFoundError: names the file that is missing.
        ValueError: the sizes differ; names them.
    """
    config: Any = tower.config
    described = _described(folder)
    theirs = described["sizes"]
    wrong = [f"{n} {theirs[n]} there, {getattr(config, n)} here" for n in SIZES if theirs[n] != getattr(config, n)]
    if wrong:
        raise ValueError(
            f"{folder} holds another picture encoder ({'; '.join(wrong)}): give both the same sizes in params.yaml"
        )
    state = to_timm(described["kind"], load_file(folder / "model.safetensors"))
    return fill(tower, from_timm(config.model_type, state), str(folder))


def _described(folder: Path) -> dict[str, Any]:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: run the stage that pretrains picture encoders")
    described: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return described
