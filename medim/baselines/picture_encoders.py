"""The vision transformers that report writers look through: their configurations and their pixels.

They are one network under different names (tower_names.py).

Letters: B pictures, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import Blip2VisionConfig, BlipVisionConfig, ViTConfig

FIRST_STD = 0.02  # of new weights (timm); transformers' configurations of BLIP and BLIP-2 say 1e-10, which never learns
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Kind:
    """A kind of tower, and the mean and deviation of each channel in [0, 1] that its released weights were given."""

    config: type[Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# BLIP and BLIP-2 normalise as CLIP; so does open_clip with BiomedCLIP-CXR, LLaVA-Rad's `vit`
KINDS = {
    "blip_vision_model": Kind(BlipVisionConfig, CLIP_MEAN, CLIP_STD),
    "blip_2_vision_model": Kind(Blip2VisionConfig, CLIP_MEAN, CLIP_STD),
    "vit": Kind(ViTConfig, CLIP_MEAN, CLIP_STD),
}


def tower_config(kind: str, sizes: Mapping[str, Any]) -> Any:
    """The transformers configuration of a tower; `sizes` as its class takes them, new weights from N(0, FIRST_STD^2).

    Raises:
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"a picture encoder is one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind].config(**{"initializer_range": FIRST_STD, **sizes})


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
