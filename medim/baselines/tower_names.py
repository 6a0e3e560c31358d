"""Names of a vision transformer's weights: timm's, which the released checkpoints have, and those in transformers.

All three kinds are the same network (patches, class token, learned positions, pre-norm blocks, final norm); BLIP's and
BLIP-2's keep queries, keys and values in one map, `vit` has three.

Letters: D width, n patches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

BLOCKS = "blocks"  # timm's list of layers
QKV, PARTS = "attn.qkv", ("attn.q", "attn.k", "attn.v")  # PARTS: our names for the thirds of timm's QKV
SCALES = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}  # DINOv2's LayerScale -> the map whose output it scales


@dataclass(frozen=True)
class Names:
    """timm's names, without `weight` and `bias`, -> those of a kind."""

    outer: Mapping[str, str]
    layers: str  # its list of layers
    inner: Mapping[str, str]  # within a layer


_FUSED = Names(
    {
        "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
        "patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm",
    },
    "encoder.layers",
    {
        "norm1": "layer_norm1", QKV: "self_attn.qkv", "attn.proj": "self_attn.projection", "norm2": "layer_norm2",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    },
)  # fmt: skip
_SPLIT = Names(
    {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
    },
    "layers",
    {
        "norm1": "layernorm_before", **{part: f"attention.{part[-1]}_proj" for part in PARTS},
        "attn.proj": "attention.o_proj", "norm2": "layernorm_after", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    },
)  # fmt: skip
KINDS = {"blip_vision_model": _FUSED, "blip_2_vision_model": _FUSED, "vit": _SPLIT}


def from_timm(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by timm's names -> by those of a kind; LayerScale is multiplied into the map before it (exact).

    Raises:
        ValueError: a name that such a network does not have.
    """
    names, state = KINDS[kind], _without_scales(state)
    if QKV not in names.inner:
        state = _split(state)
    return _renamed(state, names)


def resized_positions(positions: Tensor, patches: int) -> Tensor:
    """(1, 1 + n, D) of a square of patches, class token first -> (1, 1 + patches, D).

    Bicubic, as salesforce/BLIP models/vit.py does.
    """
    if positions.shape[1] == 1 + patches:
        return positions
    old, new = round((positions.shape[1] - 1) ** 0.5), round(patches**0.5)
    grid = positions[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _without_scales(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {name: value for name, value in state.items() if not name.endswith(tuple(SCALES))}
    for name, gamma in state.items():
        for scale, scaled in SCALES.items():
            if name.endswith(scale):
                stem = name.removesuffix(scale) + scaled
                out[f"{stem}.weight"] = out[f"{stem}.weight"] * gamma[:, None]
                out[f"{stem}.bias"] = out[f"{stem}.bias"] * gamma
    return out


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        if f".{QKV}." in name:
            out |= {name.replace(QKV, part): third for part, third in zip(PARTS, value.chunk(3), strict=True)}
        else:
            out[name] = value
    return out


def _renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        stem, end = re.fullmatch(r"(.*?)((?:\.weight|\.bias)?)", name).groups()  # type: ignore[union-attr]
        within = re.fullmatch(rf"{BLOCKS}\.(\d+)\.(.+)", stem)
        if within and within[2] in names.inner:
            out[f"{names.layers}.{within[1]}.{names.inner[within[2]]}{end}"] = value
        elif stem in names.outer:
            out[f"{names.outer[stem]}{end}"] = value
        else:
            raise ValueError(
                f"{name!r} is no weight of a plain vision transformer, whose outer ones are {list(names.outer)}"
            )
    return out
