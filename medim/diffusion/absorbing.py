"""The absorbing process: masking, and the training objective (paper Eq. 3-6; MDLM, Sahoo et al. 2024).

Shapes: B samples, L tokens, N rows (one per masked position of a modality).
Differs from UCSC-VLAA/MeDiM model.py:165-378: t is stratified over the batch (theirs holds one sample); per-modality
weights and caps are applied (their YAML sets them, nothing reads them); the loss is a mean over the tokens that could
have been masked, and is computed at masked ones only.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medim.diffusion.denoise import ModalityLogits
from medim.diffusion.schedule import Schedule, nelbo_weight
from medim.diffusion.space import TokenSpace

WEIGHTINGS = ("nelbo", "min_cap", "softmin_cap")


class Noisy(NamedTuple):
    """A masked batch and what its loss needs."""

    x0: Tensor  # (B, L) clean ids
    xt: Tensor  # (B, L) noisy ids
    t: Tensor  # (B,) float32
    weight: Tensor  # (B,) float64, -alpha' / (1 - alpha) of Eq. 6, positive
    chance: Tensor  # (B,) float64, probability of what the masking was conditioned on (1 if on nothing)
    maskable: Tensor  # (B, L) bool, tokens that carry loss when masked
    masked: Tensor  # (B, L) bool, tokens that carry loss now: ask the network for logits here


class Nelbo(NamedTuple):
    """The objective and its parts. nats; per sample, text + image is an unbiased estimate of -log p(x0) from above."""

    loss: Tensor  # () what is trained: capped, weighted mean per token
    text: Tensor  # (B,) sum over the report
    image: Tensor  # (B,) sum over the picture
    text_tokens: Tensor  # (B,) int64, tokens that the sum stands for
    image_tokens: Tensor  # (B,) int64

    def logs(self) -> dict[str, Tensor]:
        """Nats per token of each modality, over the whole batch; a modality without tokens is left out."""
        parts = {"text": (self.text, self.text_tokens), "image": (self.image, self.image_tokens)}
        return {f"nelbo_{k}": nats.sum() / num.sum() for k, (nats, num) in parts.items() if int(num.sum())}


def sample_t(num: int, sampling_eps: float, generator: torch.Generator, strata: tuple[int, int] = (0, 1)) -> Tensor:
    """(num,) float64 times in [sampling_eps, 1], one in each of equal strata, in random order.

    Stratified ("antithetic" in MDLM diffusion.py:800): sorted neighbours are at most 2 strata apart.

    Args:
        num: B.
        sampling_eps: smallest time; the NELBO leaves out what lies below.
        generator: on the CPU.
        strata: (part, parts) when a batch is drawn in parts of equal size; each part takes every parts-th stratum.
    """
    part, parts = strata
    strata_index = torch.randperm(num, generator=generator) * parts + part
    u = (strata_index + torch.rand(num, generator=generator, dtype=torch.float64)) / (num * parts)
    return sampling_eps + (1 - sampling_eps) * u


def draw_masked(maskable: Tensor, move_chance: Tensor, at_least_one: bool, generator: torch.Generator) -> Tensor:
    """(B, L) bool, each maskable token with probability `move_chance` on its own (Eq. 4).

    With `at_least_one` the draw is conditioned, exactly, on a non-empty outcome: the rank of the first masked token
    follows the cut geometric distribution, those after it are free. Weighing the loss by the probability of that
    condition (`Noisy.chance`) keeps the NELBO unbiased, since an empty row would have cost nothing. (LaViDa lifts the
    smallest draw over the threshold and does not reweigh.) Rows without maskable tokens stay empty.

    Args:
        maskable: (B, L) bool.
        move_chance: (B,) float64, 1 - alpha.
        at_least_one: see above.
        generator: on the CPU.
    """
    device = maskable.device
    u = torch.rand(maskable.shape, generator=generator, dtype=torch.float64).to(device)
    first_u = torch.rand(len(maskable), generator=generator, dtype=torch.float64).to(device)
    masked = (u < move_chance[:, None]) & maskable
    if not at_least_one:
        return masked
    rank = maskable.long().cumsum(-1) - 1  # rank of a token among the maskable ones
    first = torch.log1p(-first_u * nonempty_chance(maskable, move_chance)) / torch.log1p(-move_chance)
    # move_chance 1 divides by -inf, which is rank 0, as it should be; rounding may reach the number of tokens
    first = first.floor().long().clamp(min=0).minimum((maskable.sum(-1) - 1).clamp(min=0))[:, None]
    return ((rank == first) | ((rank > first) & masked)) & maskable


def nonempty_chance(maskable: Tensor, move_chance: Tensor) -> Tensor:
    """(B,) float64 P(at least one of the maskable tokens is masked) = 1 - (1 - move_chance)^n."""
    none = torch.exp(maskable.sum(-1) * torch.log1p(-move_chance))
    return torch.where(maskable.any(-1), 1 - none, 0.0)  # by hand where 0 * log 0 is not a number


def q_xt(x0: Tensor, masked: Tensor, hidden: Tensor | None, mask_id: int) -> Tensor:
    """(B, L) xt of Eq. 4: [MASK] where drawn and where hidden, x0 elsewhere.

    Args:
        x0: (B, L).
        masked: (B, L) bool, see `draw_masked`.
        hidden: (B, L) bool, tokens that are [MASK] at every time and carry no loss; None: none.
        mask_id: id of [MASK].
    """
    return torch.where(masked if hidden is None else masked | hidden, mask_id, x0)


def subs(logits: ModalityLogits, allowed_text: Tensor | None) -> ModalityLogits:
    """SUBS as log-probabilities in float64: [MASK] and the other modality have none at all, forbidden ids have -inf.

    float64 because single precision cuts the tail of what is drawn (Zheng et al. 2024, arXiv:2409.02908).

    Args:
        logits: at masked positions.
        allowed_text: (n_text,) bool, or None to allow all.
    """
    text = logits.text.double()
    if allowed_text is not None:
        text = text.masked_fill(~allowed_text.to(text.device), -math.inf)
    return ModalityLogits(text.log_softmax(-1), logits.image.double().log_softmax(-1))


def corrupt(
    x0: Tensor, maskable: Tensor, hidden: Tensor | None, t: Tensor, schedule: Schedule, mask_id: int,
    generator: torch.Generator, *, at_least_one: bool = True,
) -> Noisy:  # fmt: skip
    """Mask a batch at the times `t`.

    Args:
        x0: (B, L) clean ids.
        maskable: (B, L) bool; every other token that is not hidden is a condition and stays clean.
        hidden: (B, L) bool, always [MASK], without loss.
        t: (B,) float64, see `sample_t`.
        schedule: alpha.
        mask_id: id of [MASK].
        generator: on the CPU.
        at_least_one: no row without loss, see `draw_masked`.
    """
    t = t.to(x0.device)
    move_chance = 1 - schedule.alpha(t)
    masked = draw_masked(maskable, move_chance, at_least_one, generator)
    chance = nonempty_chance(maskable, move_chance) if at_least_one else torch.ones_like(t)
    xt = q_xt(x0, masked, hidden, mask_id)
    return Noisy(x0, xt, t.float(), nelbo_weight(schedule, t), chance, maskable, masked)


def cover(noisy: Noisy, covered: Tensor, schedule: Schedule, mask_id: int) -> Noisy:
    """The same batch with some maskable tokens masked whatever was drawn; the network is told the share that is masked.

    The sampler tells it that share, too: time t, where masked tokens are t of all. Covered tokens are weighed as the
    others of their sample, so the sum is no longer a bound; validation covers nothing.

    Args:
        noisy: from `corrupt`.
        covered: (B, L) bool, maskable tokens.
        schedule: as in `corrupt`.
        mask_id: id of [MASK].
    """
    if not bool(covered.any()):
        return noisy
    share, number = 1 - schedule.alpha(noisy.t.double()), noisy.maskable.sum(-1).clamp(min=1)
    hidden = covered.sum(-1)
    t = schedule.time((share * (number - hidden) + hidden) / number).float()
    masked = noisy.masked | covered
    return noisy._replace(
        xt=torch.where(covered, mask_id, noisy.xt), t=torch.where(hidden > 0, t, noisy.t), masked=masked
    )


def complement(noisy: Noisy, hidden: Tensor | None, schedule: Schedule, mask_id: int) -> Noisy:
    """The same batch with exactly the other maskable tokens masked (complementary masks, LaViDa).

    Masking with 1 - move_chance is the process at the time t' with 1 - alpha(t') = alpha(t). If t is uniform, t' has
    the density alpha'(t') / alpha'(t), so the weight that keeps this copy an unbiased NELBO is -alpha'(t) / alpha(t);
    at the log-linear schedule it is 1 / t'.

    Args:
        noisy: from `corrupt` with at_least_one=False; conditioned draws have no such complement.
        hidden: as in `corrupt`.
        schedule: as in `corrupt`.
        mask_id: id of [MASK].

    Raises:
        ValueError: the draw was conditioned.
    """
    if bool((noisy.chance != 1).any()):
        raise ValueError("complementary masks need corrupt(at_least_one=False): set it in the call")
    masked = noisy.maskable & ~noisy.masked
    t = noisy.t.double()
    alpha = schedule.alpha(t)
    weight = -schedule.dalpha(t) / alpha.clamp(min=torch.finfo(torch.float64).tiny)
    weight = torch.where(masked.any(-1), weight, 0.0)  # at t = 1, alpha = 0, nothing is left to mask
    xt = q_xt(noisy.x0, masked, hidden, mask_id)
    return noisy._replace(xt=xt, t=schedule.time(alpha).float(), weight=weight, masked=masked)


def join(first: Noisy, second: Noisy) -> Noisy:
    """Both batches as one of twice the size."""
    return Noisy(*(torch.cat(pair) for pair in zip(first, second, strict=True)))


def of_rows(noisy: Noisy, rows: slice) -> Noisy:
    """The batch with masks in these rows only: `nelbo` then gives their share of the whole batch's.

    What it divides by is the number of maskable tokens, which stays that of the whole batch.
    """
    masked = torch.zeros_like(noisy.masked)
    masked[rows] = noisy.masked[rows]
    return noisy._replace(masked=masked)


def cap_weight(weight: Tensor, weighting: str, cap: float) -> Tensor:
    """The trained weight, same shape.

    Args:
        weight: -alpha' / (1 - alpha), 1 / t at the log-linear schedule.
        weighting: `nelbo` (unchanged, official); `min_cap` min(w, cap); `softmin_cap` w cap / (w + cap - 1), at the
            log-linear schedule UniDisc's softmin-SNR weight 1 / (t + (1 - t) / cap).
        cap: largest weight, >= 1; `nelbo` does not read it.

    Raises:
        ValueError: unknown weighting, or cap below 1.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"no loss weighting {weighting!r}: params.yaml may name one of {', '.join(WEIGHTINGS)}")
    if weighting == "nelbo":
        return weight
    if cap < 1:
        raise ValueError(f"the cap of {weighting} must be at least 1, got {cap} (params.yaml)")
    return weight.clamp(max=cap) if weighting == "min_cap" else weight * cap / (weight + cap - 1)


def nelbo(
    logits: ModalityLogits, noisy: Noisy, space: TokenSpace, *, weighting: str, cap: float, text_weight: float,
    image_weight: float,
) -> Nelbo:  # fmt: skip
    """Negative ELBO of Eq. 6 from logits at `noisy.masked`.

    Eq. 6 weighs log p by alpha' / (1 - alpha); alpha' is negative, so the loss is positive without the leading minus
    that the paper prints. SUBS holds by construction: each row is normalised over its own modality's ids, [MASK] not
    among them, and clean tokens, being carried over, cost nothing.

    Args:
        logits: at `noisy.masked`.
        noisy: see `corrupt`.
        space: alphabet and layout.
        weighting: see `cap_weight`; for `loss` only, the logged parts are the NELBO itself.
        cap: see `cap_weight`.
        text_weight: weight of a report token in `loss` (UniDisc 1.0).
        image_weight: weight of a code (UniDisc 0.6).
    """
    full = (noisy.weight * noisy.chance).to(logits.text.device)  # (B,)
    trained = (cap_weight(noisy.weight, weighting, cap) * noisy.chance).to(logits.text.device)
    loss = torch.zeros((), dtype=torch.float64, device=full.device)
    normaliser = torch.zeros_like(loss)
    sums, tokens = [], []
    for part, map_, weight in (
        (logits.text, space.is_text, text_weight),
        (logits.image, space.is_image, image_weight),
    ):
        here = map_.to(noisy.x0.device)
        where = noisy.masked & here
        ids = noisy.x0[where]
        ids = space.vocab.check_text(ids) if map_ is space.is_text else space.vocab.to_codes(ids)
        nats = F.cross_entropy(part.to(torch.promote_types(part.dtype, torch.float32)), ids, reduction="none").double()
        per_sample = torch.zeros_like(full).index_add(0, where.nonzero()[:, 0], nats)  # (B,)
        number = (noisy.maskable & here).sum(-1)
        loss = loss + weight * (trained * per_sample).sum()
        normaliser = normaliser + weight * number.sum()
        sums.append((full * per_sample).detach())
        tokens.append(number)
    return Nelbo((loss / normaliser.clamp(min=1e-12)).float(), *sums, *tokens)
