"""The tokens of a batch while they are being filled: what all samplers share.

Shapes: B samples, b of them unfinished (`rows`), L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from medim.diffusion.denoise import Denoise, ModalityLogits
from medim.diffusion.draw import draw_ids
from medim.diffusion.guidance import Null, guidance_weight, guided_rows, predict
from medim.diffusion.settings import SamplerSettings
from medim.diffusion.space import TokenSpace
from medim.tokenizers.sentences import ENDS


class SampleResult(NamedTuple):
    """Finished samples and how they came about."""

    x: Tensor  # (B, L) shared ids
    steps: Tensor  # (B, L) int64, evaluation (from 0) at which a token was filled; -1 where it was given
    log_probs: Tensor  # (B, L) float64, log p of a filled token when it was filled; 0 where given or set by eos_fills
    num_evaluations: Tensor  # (B,) int64, passes through the network per sample, those of guidance counted too


DIGITS = tuple("0123456789")
_OF_SAMPLES = (
    "x", "unknown", "given", "null", "initially", "counted", "no_eos", "steps", "log_probs", "num_evaluations"
)  # fmt: skip


@lru_cache(maxsize=8)
def ids_with(last_characters: tuple[str, ...], kind: tuple[str, ...]) -> Tensor:
    """(n + 1,) bool: the report ids that write something with one of these last characters; the last one: no such id.

    Args:
        last_characters: of n report ids, see `TokenSpace`.
        kind: characters.
    """
    return torch.tensor([*(last in kind for last in last_characters), False])


class Canvas:
    """Tokens, which of them are unknown, and the record of what was filled when."""

    def __init__(
        self, space: TokenSpace, x: Tensor, generators: Sequence[torch.Generator], targets: Tensor | None,
        null: Tensor | None,
    ) -> None:  # fmt: skip
        """Start from what is given.

        Args:
            space: alphabet and layout.
            x: (B, L) shared ids, mask_id where unknown; every other token is kept.
            generators: one per sample.
            targets: (B, L) bool, [MASK] tokens outside stay [MASK] (for p(report) without a picture); None: fill all.
            null: (B, L) bool, given tokens that the other branch of guidance does not see; None: all of them.

        Raises:
            ValueError: wrong shapes, ids of the other modality, or not one generator per sample.
        """
        space.check(x)
        if len(generators) != len(x):
            raise ValueError(f"{len(x)} samples need as many generators, got {len(generators)}: pass one per sample")
        for name, map_ in (("targets", targets), ("null", null)):
            if map_ is not None and (map_.shape != x.shape or map_.dtype != torch.bool):
                raise ValueError(f"{name} must be bool {tuple(x.shape)}, got {map_.dtype} {tuple(map_.shape)}")
        self.space, self.generators, self.x = space, generators, x.clone()
        self.text, self.image = space.is_text.to(x.device), space.is_image.to(x.device)  # (L,)
        masked = x == space.mask_id
        self.unknown = masked if targets is None else masked & targets
        self.given = ~masked
        self.null = self.given & (self.text | self.image)
        if null is not None:
            self.null &= null
        self.initially = self.unknown.clone()
        self.counted = self._counted()
        self.no_eos = self._before_given_text()
        self.steps = torch.full_like(x, -1)
        self.log_probs = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        self.num_evaluations = torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def _counted(self) -> Tensor:
        """(B, L) bool: tokens whose masked share is the time: those of modalities with unknown tokens, less the prompt.

        A given beginning of the report is a prompt: training keeps it clean and leaves it out of the masking rate.
        """
        begins = (~self.unknown & self.given)[:, self.space.layout.text].int().cumprod(-1).bool()
        counted = torch.zeros_like(self.unknown)
        counted[:, self.space.layout.text] = ~begins & (self.unknown & self.text).any(1, keepdim=True)
        counted |= self.image & (self.unknown & self.image).any(1, keepdim=True)
        return counted

    def _before_given_text(self) -> Tensor:
        """(B, L) bool: report tokens before a given word, where EOS would cut that word off."""
        word = self.given & self.text
        if self.space.eos_id is not None:
            word = word & (self.x != self.space.eos_id)
        return word.flip(1).int().cumsum(1).flip(1).bool() & self.text & ~word

    def active(self) -> Tensor:
        """(b,) int64 samples with unknown tokens."""
        return self.unknown.any(1).nonzero()[:, 0]

    def masked_fraction(self) -> Tensor:
        """(B,) float64 share of the counted tokens that is masked now, in [0, 1]."""
        masked = ((self.x == self.space.mask_id) & self.counted).sum(1).double()
        return masked / self.counted.sum(1).clamp(min=1)

    def unknown_fraction(self) -> Tensor:
        """(B,) float64 share of the initially unknown tokens that is still unknown: from 1 down to 0."""
        return self.unknown.sum(1).double() / self.initially.sum(1).clamp(min=1)

    def log_probabilities(
        self, denoise: Denoise, rows: Tensor, wanted: Tensor, t: Tensor, clock: Tensor, settings: SamplerSettings
    ) -> ModalityLogits:
        """Guided log-probabilities at the wanted positions, EOS impossible where it must not stand; see `propose`."""
        xt = self.x[rows]
        null = None
        if settings.text_guidance > 0 or settings.image_guidance > 0:
            null = Null(
                xt.masked_fill(self.null[rows], self.space.mask_id),
                *(
                    guidance_weight(w, settings.guidance_ramp, clock)
                    for w in (settings.text_guidance, settings.image_guidance)
                ),
            )
        self.num_evaluations[rows] += 1 + guided_rows(xt, wanted, self.space, null).long()
        return self._without_eos(predict(denoise, xt, t, wanted, self.space, null), rows, wanted)

    def propose(
        self, denoise: Denoise, rows: Tensor, wanted: Tensor, t: Tensor, clock: Tensor, u: Tensor,
        settings: SamplerSettings,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Ask the network and draw a token at every wanted position.

        Args:
            denoise: the network.
            rows: (b,) samples.
            wanted: (b, L) bool.
            t: (b,) time that the network is told.
            clock: (b,) 1 -> 0, for the ramp of guidance.
            u: (b, L) uniform numbers.
            settings: guidance, temperature, top_p.

        Returns:
            (b, L) shared ids and (b, L) log-probabilities at temperature 1; mask_id and 0 where not wanted.
        """
        return self.draw(self.log_probabilities(denoise, rows, wanted, t, clock, settings), rows, wanted, u, settings)

    def draw(
        self, log_p: ModalityLogits, rows: Tensor, wanted: Tensor, u: Tensor, settings: SamplerSettings
    ) -> tuple[Tensor, Tensor]:
        """Draw a token at every wanted position of what the network said, `log_p`; see `propose`.

        With `u` (M, b, L) there are M draws, and what is returned is (M, b, L).
        """
        ids = torch.full(u.shape, self.space.mask_id, device=u.device)
        log_prob = torch.zeros(u.shape, dtype=torch.float64, device=u.device)
        for part, map_, temperature, top_p in (
            (log_p.text, self.text, settings.text_temperature, settings.text_top_p),
            (log_p.image, self.image, settings.image_temperature, settings.image_top_p),
        ):
            where = wanted & map_
            if not bool(where.any()):
                continue
            numbers = u[..., where]  # ([M,] N)
            drawn = draw_ids(part, numbers, temperature, top_p)
            if part is log_p.text and settings.sentence_temperature is not None:
                first = self._begins_sentence(rows)[where]
                drawn[..., first] = draw_ids(part[first], numbers[..., first], settings.sentence_temperature, top_p)
            log_prob[..., where] = part[torch.arange(len(part), device=part.device), drawn]
            ids[..., where] = drawn if part is log_p.text else self.space.vocab.from_codes(drawn)
        return ids, log_prob

    def _begins_sentence(self, rows: Tensor) -> Tensor:
        """(b, L) bool: report positions behind a known end of a sentence, and the first one; see `next_sentence`."""
        text, characters = self.space.layout.text, self.space.last_characters
        report = self.x[rows, text].clamp(max=len(characters))
        ends, digits = (ids_with(characters, kind).to(report.device)[report] for kind in (ENDS, DIGITS))
        behind = ends.clone()
        behind[:, 1:] &= ~digits[:, :-1]  # "1.5 cm"
        first = torch.zeros_like(self.x[rows], dtype=torch.bool)
        first[:, text] = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], 1)
        return first

    def _without_eos(self, log_p: ModalityLogits, rows: Tensor, wanted: Tensor) -> ModalityLogits:
        """EOS forbidden where a given word follows, or the length is known."""
        if self.space.eos_id is None:
            return log_p
        banned = self.no_eos[rows][wanted & self.text]  # (N_text,)
        if not bool(banned.any()):
            return log_p
        text = log_p.text.clone()
        text[banned, self.space.eos_id] = -math.inf
        return ModalityLogits(text.log_softmax(-1), log_p.image)

    def fill(self, rows: Tensor, commit: Tensor, ids: Tensor, log_prob: Tensor, step: int | Tensor) -> None:
        """Write tokens; what was given or already filled never changes.

        Args:
            rows: (b,) samples.
            commit: (b, L) bool.
            ids: (b, L).
            log_prob: (b, L).
            step: number of this evaluation, or (b, 1).
        """
        commit = commit & self.unknown[rows]
        self.x[rows] = torch.where(commit, ids, self.x[rows])
        self.steps[rows] = torch.where(commit, step, self.steps[rows])
        self.log_probs[rows] = torch.where(commit, log_prob, self.log_probs[rows])
        self.unknown[rows] &= ~commit

    def end_reports(self, rows: Tensor, step: int | Tensor) -> None:
        """Write EOS at every unknown report token behind an EOS (`eos_fills`); see `fill` for the arguments."""
        if self.space.eos_id is None:
            return
        x = self.x[rows]
        nothing = torch.zeros_like(self.log_probs[rows])
        self.fill(rows, self._behind_eos(x), torch.full_like(x, self.space.eos_id), nothing, step)

    def take_back(self, rows: Tensor, what: Tensor) -> None:
        """Make tokens (b, L) bool of samples (b,) unknown again; what was given stays."""
        what = what & self.initially[rows]
        self.x[rows] = self.x[rows].masked_fill(what, self.space.mask_id)
        self.steps[rows] = self.steps[rows].masked_fill(what, -1)
        self.log_probs[rows] = self.log_probs[rows].masked_fill(what, 0.0)
        self.unknown[rows] |= what

    def after(self, rows: Tensor, commit: Tensor, ids: Tensor, eos_fills: bool) -> Tensor:
        """(b, L) what would stand after `fill` and, with `eos_fills`, `end_reports`; see `fill` for the arguments."""
        x = torch.where(commit & self.unknown[rows], ids, self.x[rows])
        if not eos_fills or self.space.eos_id is None:
            return x
        return torch.where(self._behind_eos(x) & (x == self.space.mask_id), self.space.eos_id, x)

    def _behind_eos(self, x: Tensor) -> Tensor:
        """(b, L) bool: report tokens that are, or stand behind, an EOS of the report."""
        return ((x == self.space.eos_id) & self.text).int().cumsum(1).bool() & self.text

    def rows(self, index: Tensor) -> Canvas:
        """A canvas of the samples `index` (R,) of this one, which may stand there more than once."""
        other = copy(self)
        for name in _OF_SAMPLES:
            setattr(other, name, getattr(self, name)[index])
        other.generators = [self.generators[i] for i in index.tolist()]
        return other

    def become(self, filled: Canvas, num_evaluations: Tensor) -> None:
        """Take over what was filled in a canvas of the same samples, and the evaluations (B,) that it took."""
        self.x, self.unknown, self.steps, self.log_probs = filled.x, filled.unknown, filled.steps, filled.log_probs
        self.num_evaluations = num_evaluations

    def finish(self, eos_fills: bool) -> SampleResult:
        """The result.

        Args:
            eos_fills: overwrite the tokens after a report's first EOS.

        Raises:
            ValueError: eos_fills without an EOS id.
        """
        if eos_fills:
            if self.space.eos_id is None:
                raise ValueError("sampler.eos_fills needs a report tokenizer with EOS: set it to false in params.yaml")
            after = self._behind_eos(self.x) & self.initially & (self.x != self.space.eos_id)
            self.x = torch.where(after, self.space.eos_id, self.x)
            self.log_probs = self.log_probs.masked_fill(after, 0.0)
        return SampleResult(self.x, self.steps, self.log_probs, self.num_evaluations)
