"""UniDisc's denoiser (Swerdlow et al. 2025, arXiv:2503.20853; public code alexanderswerdlow/unidisc, models/dit.py).

A bidirectional transformer over report and picture, both given by ids:

    x = embedding(id) + modality
    x = x + rms(attention(rms(x)))
    x = x + dropout(rms(mlp(rms(x))))
    logits = W rms(x) + b, over the ids of the token's own modality

Every branch is normalised before and after ("sandwich"); queries and keys pass a LayerNorm over all heads at once
before they are turned; the MLP is Linear, GELU (tanh), Linear with biases; the head has a matrix of its own. Names of
modules are those of the public code. Its published sizes, as hidden_size x blocks x heads, all with mlp_ratio 4,
dropout 0.1, cond_width 128: small 768 x 12 x 12 (positions flat), large 1280 x 28 x 20, extra large 2048 x 24 x 16
(1.4 billion parameters, positions grid, zero_head).

Time is not told, as published (`time_conditioning: false`); what the public code holds for it stands behind the switch:
AdaLN that starts at 0 and acts on codes only. The gate of the attention branch is computed and not used there, since
the sandwich takes the place of the gated sum; the six parts are kept, so that shapes are the public code's.

Different: BOI and EOI, which UniDisc's sequence does not have, are not seen, so S = L - 2; the time embedder starts as
DiT's (N(0, 0.02²), biases 0) and not as torch's Linear; in bfloat16 the kernel of attention.py is used.

Letters: B batch, L positions of the layout, S = T + n positions here (report, then picture), T report tokens, n codes,
D width, H heads, C = D / H channels of a head.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medim.backbones.adaln import TimestepEmbedder
from medim.backbones.attention import attend, computes_in_bf16
from medim.backbones.backbone import Backbone
from medim.backbones.code_rows import CODE_ROWS, set_code_rows
from medim.backbones.positions import POSITIONS
from medim.diffusion.denoise import ModalityLogits
from medim.vocab import IMAGE, TEXT, SequenceLayout, SharedVocab

EPS = 1e-6  # of RMSNorm
BASE = 10_000.0  # of the rotary frequencies
PARTS = 6  # shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp


@dataclass(frozen=True)
class UniDiscSettings:
    """Sizes and switches; the values stand in params.yaml."""

    hidden_size: int  # D
    blocks: int
    heads: int  # H
    mlp_ratio: int  # width of the MLP over D
    dropout: float  # of what the MLP adds
    positions: str  # grid (2-D for codes) | flat (one line over report and picture); see `rotary_angles`
    time_conditioning: bool
    cond_width: int  # channels of the time embedding; read where time_conditioning
    code_rows: str  # drawn (published) | codebook, see code_rows.py
    zero_head: bool  # the head starts at 0
    gradient_checkpointing: bool

    def __post_init__(self) -> None:
        """Check ranges and names.

        Raises:
            ValueError: names the parameter, its value and what is possible.
        """
        for name in ("hidden_size", "blocks", "heads", "mlp_ratio", "cond_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)} (params.yaml)")
        if self.hidden_size % (4 * self.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 4 x heads, {4 * self.heads}: rows and columns "
                f"share a head's pairs of channels (params.yaml)"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout} (params.yaml)")
        for name, known in (("positions", POSITIONS), ("code_rows", CODE_ROWS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r} (params.yaml)")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `UniDiscSettings(**d)` is the inverse."""
        return asdict(self)

    def build(self, vocab: SharedVocab, layout: SequenceLayout) -> UniDiscBackbone:
        """See `BackboneRecipe`."""
        return UniDiscBackbone(vocab, layout, self)


def rotary_angles(layout: SequenceLayout, channels: int, positions: str) -> Tensor:
    """(S, C / 2) float32 angles by which pairs of channels are turned; pair i is channels i and i + C / 2.

    `flat`: position p turns pair i by p BASE^(-2 i / C), report first. `grid`: report tokens as in `flat`; a code turns
    the pairs 2 j by row BASE^(-4 j / C) and the pairs 2 j + 1 by column BASE^(-4 j / C), both from 0 (Lumina's 2-D
    embedding, which the public code takes from diffusers).

    Raises:
        ValueError: `grid`, and the codes are no square.
    """
    line = BASE ** (-torch.arange(0, channels, 2).float() / channels)
    if positions == "flat":
        return torch.outer(torch.arange(layout.n_text + layout.n_image).float(), line)
    side = math.isqrt(layout.n_image)
    if side * side != layout.n_image:
        raise ValueError(f"positions: grid needs a square of codes, got {layout.n_image}: use flat (params.yaml)")
    half = BASE ** (-torch.arange(0, channels, 4).float() / channels)  # (C / 4,)
    index = torch.arange(layout.n_image)
    rows, columns = torch.outer((index // side).float(), half), torch.outer((index % side).float(), half)
    report = torch.outer(torch.arange(layout.n_text).float(), line)
    return torch.cat([report, torch.stack([rows, columns], dim=-1).flatten(1)])


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, S, C) with its pairs of channels turned; cos and sin (S, C / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + EPS), computed in float32, times a learned weight a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) -> (…, D)."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype) * self.weight


class Rows(nn.Module):
    """An embedding that starts uniform in ± D^-0.5."""

    def __init__(self, num: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num, width).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, ids: Tensor) -> Tensor:
        """(…) -> (…, D)."""
        return F.embedding(ids, self.embedding)


class Attention(nn.Module):
    """Attention both ways, with normalised queries and keys."""

    is_causal = False

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D); cos and sin (S, C / 2)."""
        query, key, value = self.attn_qkv(x).chunk(3, dim=-1)
        parts = (self.q_norm(query), self.k_norm(key), value)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        query, key = turn(query, cos, sin).to(value.dtype), turn(key, cos, sin).to(value.dtype)
        out, _ = attend(self, query, key, value, None, scaling=query.shape[-1] ** -0.5, is_causal=False)
        mixed: Tensor = self.attn_out(out.flatten(2))
        return mixed


class Block(nn.Module):
    """Attention and MLP, each between two norms; AdaLN where the settings want time."""

    def __init__(self, settings: UniDiscSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.attention = Attention(width, settings.heads)
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.pre_residual_norm, self.post_ff_norm = RMSNorm(width), RMSNorm(width)
        inner = settings.mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width))
        self.dropout = settings.dropout
        self.adaLN_modulation = _zeros(settings, PARTS)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], c: Tensor | None, picture: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D).

        Args:
            x: hidden states.
            rotary: cos and sin (S, C / 2).
            c: (B, cond_width) time, None where it is not told.
            picture: (S, 1) bool, positions of codes.
        """
        if self.adaLN_modulation is None:
            x = x + self.pre_residual_norm(self.attention(self.norm1(x), *rotary))
            return x + self._dropped(self.post_ff_norm(self.mlp(self.norm2(x))))
        shift, scale, _, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c)[:, None].chunk(PARTS, dim=-1)
        entered = modulate(self.norm1(x), shift, scale, picture)
        x = x + self.pre_residual_norm(self.attention(entered, *rotary))
        added = self.post_ff_norm(self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp, picture)))
        return x + torch.where(picture, gate_mlp * self._dropped(added), added)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, picture: Tensor) -> Tensor:
    """(B, S, D) x (1 + scale) + shift at codes, x at report tokens; shift and scale (B, 1, D), picture (S, 1) bool."""
    return torch.where(picture, x * (1 + scale) + shift, x)


def _zeros(settings: UniDiscSettings, parts: int) -> nn.Linear | None:
    """The linear map from time to modulations, all 0; None where time is not told."""
    if not settings.time_conditioning:
        return None
    linear = nn.Linear(settings.cond_width, parts * settings.hidden_size)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Head(nn.Module):
    """The last norm and the untied head, a row per shared id."""

    def __init__(self, vocab: SharedVocab, settings: UniDiscSettings) -> None:
        super().__init__()
        self.vocab = vocab
        self.norm_final = RMSNorm(settings.hidden_size)
        self.linear = nn.Linear(settings.hidden_size, vocab.size)
        nn.init.zeros_(self.linear.bias)
        if settings.zero_head:
            nn.init.zeros_(self.linear.weight)
        self.adaLN_modulation = _zeros(settings, 2)

    def normed(self, x: Tensor, c: Tensor | None, picture: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D); see `Block.forward`."""
        normed: Tensor = self.norm_final(x)
        if self.adaLN_modulation is None:
            return normed
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return modulate(normed, shift, scale, picture)

    def forward(self, words: Tensor, codes: Tensor) -> ModalityLogits:
        """Logits of normed states (N_text, D) over report ids and (N_image, D) over codes."""
        weight, bias, first = self.linear.weight, self.linear.bias, self.vocab.image_offset
        report = slice(self.vocab.n_text)
        return ModalityLogits(
            F.linear(words, weight[report], bias[report]), F.linear(codes, weight[first:], bias[first:])
        )


class UniDiscBackbone(Backbone):
    """The denoiser; see the head of this file."""

    settings: UniDiscSettings

    def __init__(self, vocab: SharedVocab, layout: SequenceLayout, settings: UniDiscSettings) -> None:
        super().__init__()
        self.vocab, self.layout, self.settings = vocab, layout, settings
        self.towers = None
        width = settings.hidden_size
        self.vocab_embed, self.modality_embed = Rows(vocab.size, width), Rows(2, width)
        self.sigma_map = TimestepEmbedder(settings.cond_width, "sigma") if settings.time_conditioning else None
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.output_layer = Head(vocab, settings)
        angles = rotary_angles(layout, width // settings.heads, settings.positions)
        modality = torch.cat([torch.full((layout.n_text,), TEXT), torch.full((layout.n_image,), IMAGE)])
        self.cos: Tensor
        self.sin: Tensor
        self.modality: Tensor  # (S,)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("modality", modality, persistent=False)

    def hidden(self, xt: Tensor, t: Tensor) -> Tensor:
        """(B, S, D) normed last hidden states, report then picture, of shared ids (B, L) at times t (B,)."""
        ids = torch.cat([xt[:, self.layout.text], xt[:, self.layout.image]], dim=1)
        x: Tensor = self.vocab_embed(ids) + self.modality_embed(self.modality)
        c = None if self.sigma_map is None else F.silu(self.sigma_map(t))
        picture = (self.modality == IMAGE)[:, None]
        rotary = (self.cos, self.sin)
        if computes_in_bf16(x):
            rotary = (self.cos.bfloat16(), self.sin.bfloat16())
        for block in self.blocks:
            if self.settings.gradient_checkpointing and self.training:
                x = checkpoint(block, x, rotary, c, picture, use_reentrant=False)
            else:
                x = block(x, rotary, c, picture)
        return self.output_layer.normed(x, c, picture)

    def forward(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        """See `Denoise`.

        Raises:
            ValueError: xt has not the layout's length.
        """
        self.check_length(xt, "train_baseline@unidisc")
        hidden, words = self.hidden(xt, t), self.layout.n_text
        logits: ModalityLogits = self.output_layer(
            hidden[:, :words][positions[:, self.layout.text]], hidden[:, words:][positions[:, self.layout.image]]
        )
        return logits

    def layers(self) -> list[nn.Module]:
        """See `Backbone`."""
        return list(self.blocks)

    def start_codes(self, codebook: Tensor, generator: torch.Generator) -> None:
        """See `Backbone`."""
        if self.settings.code_rows == "codebook":
            set_code_rows(self.vocab_embed.embedding[self.vocab.image_offset :], codebook, generator)
