"""Timestep embedding and AdaLN for any Hugging Face pre-norm decoder, without a copy of its code (paper Sec. 2.2).

A decoder whose layers have `input_layernorm`, `self_attn`, `post_attention_layernorm` and `mlp` (Llama, Gemma, Qwen2,
Mistral) gets its layers' class exchanged for one whose `forward` modulates both branches (DiT, Peebles & Xie 2022,
models.py DiTBlock, with the decoder's own RMSNorm in place of LayerNorm):

    x = x + (g + gate_msa) · self_attn(norm(x) · (1 + scale_msa) + shift_msa)
    x = x + (g + gate_mlp) · mlp(norm(x) · (1 + scale_mlp) + shift_mlp)

The modulations are parameters of `AdaLN`, not of the decoder, whose state_dict keeps the keys of its checkpoint.
Kinds: `full`, one Linear per layer (DiT, UCSC-VLAA/MeDiM); `single`, one shared Linear and a table row per layer
(PixArt-α, Chen et al. 2023, Sec. 2.3), 1/layers of the parameters.
Starts: `identity` (g = 1, all modulations 0: the plain decoder, bit for bit), `adaln_zero` (g = 0 and all 0: every
block is off, which is what the paper names) and `official` (g = 0, weights N(0, 0.02²): what the official code has,
since its zero initialisation is overwritten when the decoder's weights are initialised).

Letters: B batch, L positions, D width, N layers.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

KINDS = ("full", "single")
STARTS = ("identity", "adaln_zero", "official")
PARTS = 6  # shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp
SIGMA_EPS = 1e-3  # of the log-linear schedule behind σ (official model.py, sampling_eps)


class TimestepEmbedder(nn.Module):
    """Time -> vector: sinusoids, then Linear, SiLU, Linear (DiT models.py TimestepEmbedder; module names as there).

    `time_input` is `t`, scaled by 1000 as in DiT, or `sigma`, σ = -log(1 - (1 - 10⁻³) t) in [0, 6.9], unscaled, as the
    official code has it (embeddings of different times are then nearly parallel).
    """

    angular: Tensor

    def __init__(self, width: int, time_input: str, frequencies: int = 256) -> None:
        super().__init__()
        if time_input not in ("t", "sigma"):
            raise ValueError(f"timestep must be t, sigma or none, got {time_input!r} (params.yaml)")
        self.time_input = time_input
        half = torch.arange(frequencies // 2) / (frequencies // 2)
        self.register_buffer("angular", torch.exp(-math.log(10_000.0) * half), persistent=False)
        layers = nn.Linear(frequencies, width), nn.Linear(width, width)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1])

    def forward(self, t: Tensor) -> Tensor:
        """(B,) times in [0, 1] -> (B, D)."""
        time = 1000.0 * t.float() if self.time_input == "t" else -torch.log1p(-(1 - SIGMA_EPS) * t.float())
        angles = time[:, None] * self.angular
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class AdaLNBlock(nn.Module):
    """Mixed into a decoder layer's class: the layer's forward with both branches modulated.

    The modulations arrive as a keyword argument that the decoder hands through to its layers. They are inputs of
    `forward`, so gradient checkpointing, which recomputes `forward`, sees them too (hooks would be outside it).
    """

    def forward(self, hidden_states: Tensor, modulations: Tensor | None = None, **kwargs: Any) -> Tensor:
        """(B, L, D) -> (B, L, D); `modulations` (N, 6, B, 1, D) of all layers, see `AdaLN`; None: the plain layer."""
        if modulations is None:
            return super().forward(hidden_states, **kwargs)
        layer: Any = self
        rows = modulations[layer.self_attn.layer_idx].to(hidden_states.dtype)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = rows.unbind(0)
        # Multiply then add, and branches cast first: addcmul and mixed types cost twice the time on a CPU.
        x = layer.input_layernorm(hidden_states) * scale_msa + shift_msa
        hidden_states = hidden_states + layer.self_attn(hidden_states=x, **kwargs)[0].to(x.dtype) * gate_msa
        x = layer.post_attention_layernorm(hidden_states) * scale_mlp + shift_mlp
        return hidden_states + layer.mlp(x).to(x.dtype) * gate_mlp


@functools.cache
def adaptive_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The layer's class with `AdaLNBlock` before it."""
    return type(f"AdaLN{layer_class.__name__}", (AdaLNBlock, layer_class), {"__module__": layer_class.__module__})


def make_adaptive(decoder: Any) -> None:
    """Exchange the class of every layer of a Hugging Face decoder, in place; weights and their names stay.

    Raises:
        ValueError: the layers are not of the pre-norm form that `AdaLNBlock` computes.
    """
    for layer in decoder.layers:
        names = {name for name, _ in layer.named_children()}
        if names != {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}:
            raise ValueError(
                f"AdaLN needs layers made of input_layernorm, self_attn, post_attention_layernorm and mlp, "
                f"{type(layer).__name__} has {sorted(names)}: use a Llama, Gemma, Qwen2 or Mistral decoder"
            )
        if not isinstance(layer, AdaLNBlock):
            layer_class: Any = type(layer)
            layer.__class__ = adaptive_class(layer_class)


class AdaLN(nn.Module):
    """Time vector -> shift, scale and gate of both branches of every layer."""

    offset: Tensor

    def __init__(self, width: int, layers: int, kind: str, start: str, use_silu: bool) -> None:
        """`use_silu`: SiLU before the Linear, as in DiT; the official code has none."""
        super().__init__()
        if kind not in KINDS or start not in STARTS:
            raise ValueError(
                f"adaln must be one of {KINDS} or none, adaln_init one of {STARTS}: got {kind!r}, {start!r}"
            )
        self.width, self.layers, self.kind, self.start, self.use_silu = width, layers, kind, start, use_silu
        self.linears = nn.ModuleList(nn.Linear(width, PARTS * width) for _ in range(layers if kind == "full" else 1))
        self.table = nn.Parameter(torch.zeros(layers, PARTS * width)) if kind == "single" else None
        offset = torch.tensor([0.0, 1.0, float(start == "identity")]).repeat(2)  # of shift, scale, gate
        self.register_buffer("offset", offset[:, None, None, None], persistent=False)
        self.reset()

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.linears if isinstance(layer, nn.Linear)]

    @torch.no_grad()
    def reset(self) -> None:
        """Set the start; to be called after anything that initialises the modules it finds."""
        for linear in self._linears():
            if self.start == "official":
                nn.init.normal_(linear.weight, std=0.02)
            else:
                nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        if self.table is not None:
            nn.init.zeros_(self.table)

    def forward(self, c: Tensor) -> Tensor:
        """(B, D) -> (N, 6, B, 1, D) float32, official order, as `AdaLNBlock` uses them (1 + scale, g + gate)."""
        c = silu(c) if self.use_silu else c
        rows = torch.stack([linear(c).float() for linear in self._linears()])  # (N or 1, B, 6 D)
        if self.table is not None:
            rows = rows + self.table[:, None]
        rows = rows.view(self.layers, -1, PARTS, self.width).transpose(1, 2)
        return rows[:, :, :, None] + self.offset
