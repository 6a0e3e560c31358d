"""R2GenCMN's network: patches and words ask one memory matrix, and what it answers is added to them.

Source: Chen et al. 2021 (arXiv:2204.13258), as in zhjohnchan/R2GenCMN, modules/base_cmn.py. A query sees, in
each head, only the slots that fit it best; softmax over these. Positions are added to patches too, behind the memory;
words have theirs before it.

Faster than the published code with the same values: keys and values of the memory, the same for all, are made once a
batch instead of once for every study, for patches and for words; the values that a query sees are summed where they
are, not copied together first; the best slots are looked for in groups.

Letters: R rows, T words or patches, D width, h heads, N slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medim.baselines.report_decoder import DecoderSizes, EncoderDecoder, KeyValues, Projected, StdNorm, init_matrices

GROUP = 8  # slots


@dataclass(frozen=True)
class CMNSizes:
    """Sizes of R2GenCMN's network; the values stand in params.yaml."""

    decoder: DecoderSizes
    slots: int  # N; published: 2048
    top: int  # slots that a query sees; published: 32

    def __post_init__(self) -> None:
        """Check the memory's sizes.

        Raises:
            ValueError: a query would see more slots than there are, or none.
        """
        if not 1 <= self.top <= self.slots:
            raise ValueError(f"top must lie in [1, slots], got {self.top} of {self.slots}")


class SharedMemory(nn.Module):
    """N slots of width D that every patch and every word may ask."""

    def __init__(self, width: int, slots: int, top: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.top, self.dropout = heads, top, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.slots = nn.Parameter(torch.empty(slots, width))

    def init_weights(self) -> None:
        """As published: Xavier-uniform maps, slots normal with standard deviation 1 / D."""
        init_matrices(self)
        nn.init.normal_(self.slots, std=1 / self.slots.shape[1])

    def project(self) -> KeyValues:
        """Keys and values of the slots, each (h, N, D / h)."""
        keys, values = (one(self.slots).unflatten(-1, (self.heads, -1)) for one in (self.key, self.value))
        return KeyValues(keys.transpose(0, 1), values.transpose(0, 1))

    def forward(self, x: Tensor, projected: KeyValues) -> Tensor:
        """Answers (R, T, D) to x (R, T, D); `projected` from `project`."""
        heads, slots = projected.keys.shape[:2]
        asked = self.query(x).flatten(0, 1).unflatten(-1, (heads, -1)).transpose(0, 1)  # (h, R T, D / h)
        scores = (asked / math.sqrt(asked.shape[-1])) @ projected.keys.transpose(-2, -1)
        chosen = best_slots(scores, self.top)
        best = scores.gather(-1, chosen)
        weights = F.dropout(best.float().softmax(-1), self.dropout, self.training)
        rows = chosen + slots * torch.arange(heads, device=x.device)[:, None, None]  # of all heads' values
        found = F.embedding_bag(
            rows.flatten(0, 1), projected.values.flatten(0, 1).float(), mode="sum",
            per_sample_weights=weights.flatten(0, 1),
        )  # fmt: skip
        answers: Tensor = self.out(found.unflatten(0, (heads, -1)).transpose(0, 1).flatten(1))
        return answers.view(x.shape)


def best_slots(scores: Tensor, top: int) -> Tensor:
    """(..., N) -> (..., top) int64: the slots of the highest scores, in no order; of equal scores any.

    Faster than `topk` of all N, with the same result: the best are in those `top` groups of GROUP slots whose best
    score is highest, so two small searches do.
    """
    slots = scores.shape[-1]
    groups = slots // GROUP
    with torch.no_grad():
        if slots % GROUP or groups < 2 * top:
            return scores.topk(top, sorted=False).indices
        split = scores.detach().unflatten(-1, (GROUP, groups))  # slot i groups + g is the i-th of group g
        best = split.amax(-2).topk(top, sorted=False).indices
        found = split.gather(-1, best.unsqueeze(-2).expand(*best.shape[:-1], GROUP, top)).flatten(-2)
        places = found.topk(top, sorted=False).indices
        return places // top * groups + best.gather(-1, places % top)


class CMNNetwork(EncoderDecoder):
    """The encoder-decoder with a memory that patches and words share."""

    def __init__(self, sizes: CMNSizes, feature_width: int, num_ids: int) -> None:
        decoder = sizes.decoder
        super().__init__(decoder, feature_width, num_ids, lambda: StdNorm(decoder.width))
        self.sizes = sizes
        self.memory = SharedMemory(decoder.width, sizes.slots, sizes.top, decoder.heads, decoder.dropout)
        for module in (self.encoder, self.layers, self.words):
            init_matrices(module)
        self.memory.init_weights()

    def project(self) -> KeyValues:
        """See `EncoderDecoder`."""
        return self.memory.project()

    def see(self, patches: Tensor, projected: Projected | None) -> Tensor:
        """See `EncoderDecoder`."""
        assert projected is not None
        return self.place(patches + self.memory(patches, KeyValues(*projected)), 0)

    def read(
        self, x: Tensor, memory: Tensor, projected: Projected | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
        """See `EncoderDecoder`; nothing is carried from word to word."""
        assert projected is not None
        return x + self.memory(x, KeyValues(*projected)), None, memory
