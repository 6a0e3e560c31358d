"""The attention kernel that backbones use: SDPA, and plain matrix products where SDPA is slow.

transformers lets a model name its attention function; `MEDIM_ATTENTION` is registered there. On a CPU torch's flash
kernel takes 3 to 4 times as long in bfloat16 as two batched products and a softmax while sequences are short (torch
2.15, L = 110 to 162, heads of 32 or 64); beyond `SHORT` positions, in float32 and on GPUs SDPA is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MEDIM_ATTENTION = "medim_attention"
SHORT = 512  # positions; the (B, H, L, L) scores of longer sequences no longer fit a core's cache


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """(B, H, L, C) queries, keys, values -> (B, L, H, C); arguments as transformers' `sdpa_attention_forward`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    asked = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True) if asked is None else asked)  # as transformers decides it
    plain = (
        query.device.type == "cpu"
        and computes_in_bf16(query)
        and query.shape[2] <= SHORT
        and query.shape[1] == key.shape[1]
        and (attention_mask is None or attention_mask.dtype == torch.bool)
        and not kwargs.get("dropout")
    )
    if not plain:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    scores = (query * kwargs["scaling"]) @ key.transpose(-1, -2)  # (B, H, L, L)
    if attention_mask is not None:  # True: attends
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    elif causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    weights = torch.softmax(scores, dim=-1, dtype=torch.bfloat16)
    return (weights @ value).transpose(1, 2).contiguous(), None


def computes_in_bf16(x: Tensor) -> bool:
    """Whether x is bfloat16 or autocast makes it so."""
    return x.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) == torch.bfloat16
    )


def register_attention() -> str:
    """Make `MEDIM_ATTENTION` known to transformers, with SDPA's masks (none where nothing is masked)."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(MEDIM_ATTENTION, attend)
    AttentionMaskInterface.register(MEDIM_ATTENTION, sdpa_mask)
    return MEDIM_ATTENTION


def rotary_in_compute_dtype(_module: Any, _inputs: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Forward hook of a rotary embedding: cos and sin in the type that queries and keys have under autocast.

    transformers gives them the residual stream's float32, which would turn every bfloat16 query and key back into
    float32 before attention casts them again. A decoder that is bfloat16 throughout has them in bfloat16 as well.
    """
    cos, sin = output
    return (cos.bfloat16(), sin.bfloat16()) if computes_in_bf16(cos) else output
