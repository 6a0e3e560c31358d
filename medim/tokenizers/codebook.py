"""Codebooks of the VQGAN: learned by moving averages (the default) or by gradients (as in taming-transformers).

Both keep the code vectors under `embedding.weight`, so that a checkpoint of one loads into the other and into the
published networks. All state is in buffers: a training that goes on from its `state_dict` is the same training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantised(NamedTuple):
    """What a codebook makes of latents (B, D, h, w)."""

    z_q: Tensor  # (B, D, h, w), with the gradient of the latents
    loss: Tensor  # scalar
    codes: Tensor  # (B, h, w) int64


KINDS = ("ema", "learned")


@dataclass(frozen=True)
class CodebookSettings:
    """How a codebook learns; the values stand in params.yaml."""

    kind: str  # ema | learned
    beta: float  # weight of the commitment loss (ema), of the codebook loss (learned)
    decay: float  # of the moving averages, a training step
    restart_below: float  # a code used less than this share of the mean use is dead and moved onto a latent
    start_after: int  # training steps without quantisation before k-means sets the codes
    samples_per_code: int  # latents that k-means sees, per code

    def __post_init__(self) -> None:
        """Check the kind, and that k-means sees latents.

        Raises:
            ValueError: names the parameter, its value and what is possible.
        """
        if self.kind not in KINDS:
            raise ValueError(
                f"codebook kind must be {' or '.join(KINDS)}, got {self.kind!r} "
                f"(params.yaml:train_vqgan.training.codebook)"
            )
        if self.samples_per_code < 1:
            raise ValueError(f"codebook samples_per_code must be at least 1, got {self.samples_per_code} (params.yaml)")

    def calls_before_start(self, size: int, rows: int) -> int:
        """Training calls, with `rows` latents each, after which k-means has set the `size` codes of an EmaCodebook."""
        return max(1, self.start_after, -(-size * self.samples_per_code // rows))


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    """(N,) int64: index of the row of `codes` (K, D) nearest to each row of `z` (N, D), in Euclidean distance.

    |z|² is left out of the distance: it is the same for all codes, and without it less is lost to rounding.
    """
    return torch.addmm(codes.square().sum(1), z, codes.T, alpha=-2.0).argmin(1)


def kmeans(points: Tensor, clusters: int, iterations: int = 10) -> Tensor:
    """Lloyd's algorithm from random points: (clusters, D) means of `points` (N, D), N >= clusters.

    Draws from torch's default generator. A cluster that loses all its points is put onto a random point.

    Raises:
        ValueError: fewer points than clusters.
    """
    if len(points) < clusters:
        raise ValueError(f"k-means needs at least {clusters} points, got {len(points)}: raise samples_per_code")
    means = points[torch.randperm(len(points), device=points.device)[:clusters]].clone()
    for _ in range(iterations):
        counts, sums = _sums(points, nearest(points, means), clusters)
        spare = points[torch.randint(len(points), (clusters,), device=points.device)]
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], spare)
    return means


def _sums(points: Tensor, index: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Number (clusters,) and sum (clusters, D) of the points of each cluster."""
    counts = torch.bincount(index, minlength=clusters).to(points.dtype)
    return counts, points.new_zeros(clusters, points.shape[1]).index_add_(0, index, points)


class Codebook(nn.Module, ABC):
    """What both kinds share: the latents' grid to rows and back, in float32 whatever autocast says.

    In bfloat16 near codes could not be told apart: distances are differences of large squares.
    """

    embedding: nn.Module

    @property
    def weight(self) -> Tensor:
        """(K, D) code vectors."""
        weight: Tensor = self.embedding.weight  # type: ignore[assignment]
        return weight

    def encode(self, z: Tensor) -> Tensor:
        """Codes (B, h, w) int64 of latents (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().permute(0, 2, 3, 1)
            return nearest(rows.flatten(0, 2), self.weight).view(rows.shape[:3])

    def vectors(self, codes: Tensor) -> Tensor:
        """Code vectors (B, D, h, w) of codes (B, h, w)."""
        return F.embedding(codes, self.weight).permute(0, 3, 1, 2)

    def forward(self, z: Tensor) -> Quantised:
        """Quantise latents (B, D, h, w); the gradient of z_q goes to z unchanged (straight-through)."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            rows = z.permute(0, 2, 3, 1)
            codes = nearest(rows.detach().flatten(0, 2), self.weight.detach()).view(rows.shape[:3])
            z_q, loss = self.quantise(z, codes)
            return Quantised(z_q, loss, codes)

    @abstractmethod
    def quantise(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(z_q with the gradient of z, loss) of float32 latents and their codes; learns where in training."""


class LearnedCodebook(Codebook):
    """Codes learned by gradients: taming's VectorQuantizer2 with `legacy=True`, as the published VQGANs were trained.

    In the legacy order beta weighs the term that moves the codes, not the commitment of the encoder
    (https://github.com/CompVis/taming-transformers, taming/modules/vqvae/quantize.py:213-222); it is kept because the
    published recipes depend on it.
    """

    def __init__(self, size: int, dim: int, beta: float = 0.25) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)
        self.beta = beta

    def quantise(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See `Codebook.quantise`."""
        z_q = self.vectors(codes)
        loss = F.mse_loss(z, z_q.detach()) + self.beta * F.mse_loss(z_q, z.detach())
        return z + (z_q - z).detach(), loss


class _Vectors(nn.Module):
    """Code vectors as a buffer under the name that nn.Embedding gives them."""

    weight: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(size, dim))


class EmaCodebook(Codebook):
    """Codes that are moving averages of the latents they stand for (van den Oord et al. 2017, appendix A.1).

    Additions: for the first `start_after` steps the latents pass unquantised, then k-means over the newest latents sets
    the codes, since codes set on an untrained encoder die as soon as it moves; and a code whose moving count falls
    below `restart_below` times the mean is moved onto a random latent of the batch, with the mean count, so that it has
    time to win latents before it is judged again.
    """

    cluster_size: Tensor
    embed_sum: Tensor
    newest: Tensor
    collected: Tensor
    calls: Tensor
    started: Tensor

    def __init__(self, size: int, dim: int, settings: CodebookSettings) -> None:
        super().__init__()
        self.embedding = _Vectors(size, dim)
        self.settings = settings
        self.register_buffer("cluster_size", torch.ones(size))
        self.register_buffer("embed_sum", self.weight.clone())
        self.register_buffer("newest", torch.zeros(size * settings.samples_per_code, dim))
        self.register_buffer("collected", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def quantise(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See `Codebook.quantise`; before the start z passes as it is."""
        if not self.started:
            if self.training:
                self._collect(z.detach().permute(0, 2, 3, 1).flatten(0, 2))
            return z, z.new_zeros(())
        z_q = self.vectors(codes)
        loss = self.settings.beta * F.mse_loss(z, z_q)
        if self.training:
            self._update(z.detach().permute(0, 2, 3, 1).flatten(0, 2), codes.flatten())
        return z + (z_q - z).detach(), loss

    @torch.no_grad()
    def _collect(self, rows: Tensor) -> None:
        """Keep the newest latents; after `start_after` calls set the codes by k-means."""
        size = len(self.weight)
        self.newest.copy_(torch.cat([self.newest, rows])[-len(self.newest) :])
        self.collected += len(rows)
        self.calls += 1
        if int(self.calls) < self.settings.start_after or int(self.collected) < len(self.newest):
            return
        self.weight.copy_(kmeans(self.newest, size))
        counts, _ = _sums(self.newest, nearest(self.newest, self.weight), size)
        # counts of a batch, not of the whole collection, and none dead from the start
        self.cluster_size.copy_((counts * (len(rows) / len(self.newest))).clamp(min=1e-2))
        self.embed_sum.copy_(self.weight * self.cluster_size[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def _update(self, rows: Tensor, codes: Tensor) -> None:
        """One step of the moving averages, Laplace-smoothed, then the restart of dead codes."""
        size, mean = len(self.weight), len(rows) / len(self.weight)
        counts, sums = _sums(rows, codes, size)
        self.cluster_size.lerp_(counts, 1 - self.settings.decay)
        self.embed_sum.lerp_(sums, 1 - self.settings.decay)
        dead = self.cluster_size < self.settings.restart_below * mean
        drawn = rows[torch.randint(len(rows), (size,), device=rows.device)]
        self.cluster_size.masked_fill_(dead, mean)
        self.embed_sum.copy_(torch.where(dead[:, None], drawn * mean, self.embed_sum))
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + 1e-5) / (total + size * 1e-5) * total
        self.weight.copy_(self.embed_sum / smoothed[:, None])


def build_codebook(size: int, dim: int, settings: CodebookSettings) -> Codebook:
    """The codebook that `settings.kind` names."""
    if settings.kind == "ema":
        return EmaCodebook(size, dim, settings)
    return LearnedCodebook(size, dim, settings.beta)


def codebook_statistics(codes: Tensor, size: int) -> tuple[float, float]:
    """(usage in (0, 1], perplexity in [1, size]) of codes of any shape: share that occurs, exp of the entropy.

    Raises:
        ValueError: no codes, or one outside [0, size).
    """
    if codes.numel() == 0 or int(codes.min()) < 0 or int(codes.max()) >= size:
        raise ValueError(f"codebook_statistics needs codes in [0, {size}), got {codes.numel()} of them")
    share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    used = share[share > 0]
    return len(used) / size, float((-(used * used.log()).sum()).exp())
