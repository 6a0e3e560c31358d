"""R2Gen's network: a relational memory runs along the words and tells the decoder's norms what was written.

Source: Chen et al. 2020 (arXiv:2010.16056), as in cuhksz-nlp/R2Gen, modules/encoder_decoder.py. In the published
code the MLP of the memory ends in a ReLU; here too.

    relational memory   Z = M + attention(M; M and x)    Z = Z + MLP(Z)    [i, f] = W x + U tanh(M)
                        M' = sigmoid(i) tanh(Z) + sigmoid(f) M             S slots; the first M is the identity, padded
    conditional norm    (gamma + f_gamma(M')) standardised x + beta + f_beta(M')       in place of the decoder's norms

Faster than the published code with the same values: what x alone decides is computed for all words at once, the query,
key and value of M in one product; where words are written one by one, what M' says to all norms in two.

Letters: R rows, T words, D width, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medim.baselines.report_decoder import (
    DecoderSizes,
    EncoderDecoder,
    Projected,
    init_matrices,
    split_heads,
    standardise,
)

FIRST_BIAS = 0.1  # of the maps from memory to norms


@dataclass(frozen=True)
class R2GenSizes:
    """Sizes of R2Gen's network; the values stand in params.yaml."""

    decoder: DecoderSizes
    slots: int  # S; published: 3
    memory_heads: int  # of the memory's attention; published: 8

    def __post_init__(self) -> None:
        """Check the memory's sizes.

        Raises:
            ValueError: names the value that is impossible.
        """
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, got {self.slots}")
        if self.memory_heads < 1 or self.decoder.width % self.memory_heads:
            raise ValueError(f"memory_heads must divide decoder.width {self.decoder.width}, got {self.memory_heads}")


class RelationalMemory(nn.Module):
    """S slots that attend to themselves and to the new word, through gates."""

    def __init__(self, width: int, slots: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.width, self.slots, self.heads, self.dropout = width, slots, heads, dropout
        self.project = nn.Linear(width, 3 * width)  # query, key and value
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.gate_of_input, self.gate_of_memory = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)

    def init_weights(self) -> None:
        """As published: every matrix Xavier-uniform, those of query, key and value each for itself."""
        init_matrices(self)
        for matrix in self.project.weight.data.chunk(3):
            nn.init.xavier_uniform_(matrix)

    def first(self, rows: int) -> Tensor:
        """(rows, S * D): the memory before the first word."""
        eye = torch.eye(self.slots, self.width, device=self.out.weight.device, dtype=self.out.weight.dtype)
        return eye.flatten().repeat(rows, 1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Words (R, T, D) and the memory (R, S * D) before them -> memories (R, T, S * D) behind each."""
        weight, bias = self.project.weight[self.width :], self.project.bias[self.width :]
        key_values = F.linear(x, weight, bias).chunk(2, -1)
        keys, values = (split_heads(one, self.heads) for one in key_values)  # (R, h, T, D / h)
        gates = self.gate_of_input(x)
        slots, behind = memory.unflatten(-1, (self.slots, self.width)), []
        for key, value, gate in zip(keys.split(1, 2), values.split(1, 2), gates.split(1, 1), strict=True):
            slots = self._behind(slots, key, value, gate)
            behind.append(slots.flatten(1))
        return torch.stack(behind, 1)

    def _behind(self, slots: Tensor, key: Tensor, value: Tensor, gate: Tensor) -> Tensor:
        """Slots (R, S, D) behind one word, given by its key and value (R, h, 1, D / h) and its gates (R, 1, 2 D)."""
        query, keys, values = (split_heads(one, self.heads) for one in self.project(slots).chunk(3, -1))
        keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        scores = query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training)
        new = slots + self.out((weights @ values).transpose(1, 2).flatten(2))
        new = new + self.mlp(new)
        take, keep = (gate + self.gate_of_memory(slots.tanh())).sigmoid().chunk(2, -1)
        return take * new.tanh() + keep * slots


class NormMaps(NamedTuple):
    """The maps from memory to gamma and beta of N norms, 2 N in all, gamma's before beta's of each."""

    first: Tensor  # (2 N, D, S D)
    first_bias: Tensor  # (2 N, 1, D)
    second: Tensor  # (2 N, D, D)
    second_bias: Tensor  # (2 N, 1, D)

    def changes(self, memory: Tensor) -> Tensor:
        """Memories (R, T, S D) -> what they add to gamma and beta of each norm, (N, 2, R, T, D)."""
        maps, width = self.second.shape[:2]
        told = memory.flatten(0, 1).expand(maps, -1, -1)  # (2 N, R T, S D)
        hidden = torch.baddbmm(self.first_bias, told, self.first.transpose(1, 2)).relu()
        found = torch.baddbmm(self.second_bias, hidden, self.second.transpose(1, 2))
        return found.view(maps // 2, 2, *memory.shape[:2], width)


class ConditionalNorm(nn.Module):
    """Memory-driven conditional layer norm (MCLN), the norm of this `number` among all that `norm_maps` is given."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__()
        self.number = 0
        self.gamma, self.beta = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.gamma_change, self.beta_change = (
            nn.Sequential(nn.Linear(slots * width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(module.bias, FIRST_BIAS)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(R, T, D) and memories (R, T, S D), or the changes (N, 2, R, T, D) of `NormMaps` -> (R, T, D)."""
        gamma, beta = told[self.number] if told.dim() == 5 else (self.gamma_change(told), self.beta_change(told))
        return (self.gamma + gamma) * standardise(x) + self.beta + beta


def norm_maps(norms: Sequence[ConditionalNorm]) -> NormMaps:
    """All their maps as few tensors: two products for all norms instead of four a norm."""
    maps = [cast("list[nn.Linear]", list(change)) for one in norms for change in (one.gamma_change, one.beta_change)]
    return NormMaps(
        torch.stack([first.weight for first, _, _ in maps]), torch.stack([first.bias for first, _, _ in maps])[:, None],
        torch.stack([second.weight for _, _, second in maps]),
        torch.stack([second.bias for _, _, second in maps])[:, None],
    )  # fmt: skip


class R2GenNetwork(EncoderDecoder):
    """The encoder-decoder with a relational memory and conditional norms."""

    def __init__(self, sizes: R2GenSizes, feature_width: int, num_ids: int) -> None:
        width = sizes.decoder.width
        super().__init__(sizes.decoder, feature_width, num_ids, lambda: ConditionalNorm(width, sizes.slots))
        self.sizes = sizes
        self.memory = RelationalMemory(width, sizes.slots, sizes.memory_heads, sizes.decoder.dropout)
        for module in (self.encoder, self.layers, self.words):
            init_matrices(module)
        self.memory.init_weights()
        for number, norm in enumerate(self.conditional_norms()):
            norm.number = number

    def conditional_norms(self) -> list[ConditionalNorm]:
        """Those of all decoder layers, in order."""
        return [module for module in self.layers.modules() if isinstance(module, ConditionalNorm)]

    def project(self) -> Projected | None:
        """See `EncoderDecoder`: the maps of all norms, where words are written one by one (training does not gain)."""
        return None if torch.is_grad_enabled() else norm_maps(self.conditional_norms())

    def first_memory(self, rows: int) -> Tensor:
        """See `EncoderDecoder`."""
        return self.memory.first(rows)

    def read(
        self, x: Tensor, memory: Tensor, projected: Projected | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        """See `EncoderDecoder`; the norms are told the memory behind each word, or what it changes in them."""
        behind = self.memory(x, memory)
        return x, behind if projected is None else NormMaps(*projected).changes(behind), behind[:, -1]
