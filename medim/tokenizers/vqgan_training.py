"""Training of the VQGAN, and its use on whole arrays of pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from medim.tokenizers.codebook import CodebookSettings, EmaCodebook, build_codebook, codebook_statistics
from medim.tokenizers.vqgan import VQGAN, Reconstruction, VQGANConfig, save_vqgan, to_pixels, to_unit
from medim.tokenizers.vqgan_loss import (
    LPIPS,
    PatchDiscriminator,
    VQGANLossSettings,
    adaptive_weight,
    hinge_loss,
    load_lpips,
    ssim,
)
from medim.training import FitResult, OnLog, Optimisation, fit, step_seed

Pixels = NDArray[np.uint8]  # (N, S, S, 3)
OnSheet = Callable[[int, Image.Image], None]


@dataclass(frozen=True)
class VQGANTraining:
    """What is trained, and what is looked at meanwhile; the values stand in params.yaml."""

    model: VQGANConfig
    codebook: CodebookSettings
    loss: VQGANLossSettings
    sheet_at: tuple[int, ...]  # steps at which a sheet is drawn; the last step always has one
    sheet_images: int  # columns of a sheet


def balanced_batch(images: Mapping[str, Pixels], size: int, seed: int, step: int, part: int) -> Tensor:
    """uint8 (size, S, S, 3): equal numbers of each dataset (the remainder is drawn), a pure function of its arguments.

    Raises:
        ValueError: a dataset has no pictures, or their sizes differ.
    """
    rng = np.random.default_rng(step_seed(seed, step, part))
    names = sorted(images)
    order = rng.permutation(len(names))
    picked = [images[names[order[i % len(names)]]] for i in range(size)]
    return torch.from_numpy(np.stack([pixels[rng.integers(len(pixels))] for pixels in picked]))


class VQGANTrainee:
    """Generator and discriminator for `medim.training.fit`.

    The generator's forward is kept for the discriminator's loss of the same step, which needs it without gradients.
    The discriminator learns from step 0 but counts for the generator from `disc_start` only: a fresh one that steps in
    later destroys reconstructions (https://github.com/CompVis/taming-transformers/issues/44).
    """

    def __init__(self, settings: VQGANTraining, device: torch.device, on_start: Callable[[VQGAN, int], None]) -> None:
        model, loss = settings.model, settings.loss
        codebook = build_codebook(model.codebook_size, model.embed_dim, settings.codebook)
        self.settings = loss
        self.vqgan = VQGAN(model, codebook).to(device)
        self.discriminator = PatchDiscriminator(loss.disc_ch, loss.disc_layers).to(device) if loss.disc_weight else None
        self.lpips = _lpips(loss, device)
        self.on_start = on_start
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.begun = -1  # the step whose first part has come

    def players(self) -> dict[str, nn.Module]:
        """The generator, and the discriminator where it has a weight."""
        if self.discriminator is None:
            return {"generator": self.vqgan}
        return {"generator": self.vqgan, "discriminator": self.discriminator}

    def loss(
        self, player: str, batch: Tensor, step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one player on uint8 pictures (B, S, S, 3)."""
        if player == "discriminator":
            return self._discriminator_loss()
        if step != self.begun:
            self.begun = step
            self.on_start(self.vqgan, step)
        images = to_unit(batch.to(next(self.vqgan.parameters()).device))
        result: Reconstruction = self.vqgan(images)
        if self.discriminator is not None:
            self.kept.append((images, result.images.detach()))
        return self._generator_loss(images, result, step)

    def _generator_loss(self, images: Tensor, result: Reconstruction, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixel = F.l1_loss(result.images.float(), images)
        logs = {"l1": pixel, "codebook_loss": result.loss}
        loss = pixel
        if self.settings.ssim_weight:
            logs["ssim"] = ssim(result.images.float(), images)
            loss = loss + self.settings.ssim_weight * (1 - logs["ssim"])
        if self.lpips is not None:
            logs["lpips"] = self.lpips(result.images, images).mean()
            loss = loss + self.settings.perceptual_weight * logs["lpips"]
        if self.discriminator is not None and step >= self.settings.disc_start:
            self.discriminator.requires_grad_(False)  # its weights need no gradient here, only the pictures do
            adversarial = -self.discriminator(result.images).float().mean()
            self.discriminator.requires_grad_(True)
            weight = adaptive_weight(loss, adversarial, self.vqgan.decoder.conv_out.weight)
            logs |= {"adversarial": adversarial, "adaptive_weight": weight}
            loss = loss + self.settings.disc_weight * weight * adversarial
        return loss + result.loss, logs

    def _discriminator_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        if self.discriminator is None:
            raise ValueError(
                "this VQGAN is trained without a discriminator (params.yaml:train_vqgan.training.loss.disc_weight is 0)"
            )
        images, reconstructions = self.kept.pop(0)
        real, fake = self.discriminator(images), self.discriminator(reconstructions)
        return hinge_loss(real, fake), {"disc_real": real.mean(), "disc_fake": fake.mean()}


def _lpips(loss: VQGANLossSettings, device: torch.device) -> LPIPS | None:
    if not loss.perceptual_weight:
        return None
    if loss.lpips_vgg is None or loss.lpips_heads is None:
        raise ValueError(
            "params.yaml:train_vqgan.training.loss.perceptual_weight needs lpips_vgg and lpips_heads (files), or 0"
        )
    return load_lpips(Path(loss.lpips_vgg), Path(loss.lpips_heads)).to(device)


def train_vqgan(
    images: Mapping[str, Pixels], val_images: Mapping[str, Pixels], config: VQGANTraining, optim: Optimisation,
    *, seed: int, work: Path, out: Path, on_log: OnLog, on_sheet: OnSheet, device: torch.device,
) -> FitResult:  # fmt: skip
    """Train a VQGAN on pictures in memory and write it to `out` (see `load_vqgan`).

    Args:
        images: dataset -> uint8 (N, S, S, 3) for training; batches hold equal numbers of each.
        val_images: the same for validation, logged as `val/<dataset>/...`; keep it small, it is all reconstructed.
        config: network, codebook and losses.
        optim: how it is trained.
        seed: of the weights, the batches and all draws.
        work: folder of the checkpoints.
        out: folder of the result.
        on_log: gets (step, scalars).
        on_sheet: gets (step, sheet of originals above reconstructions).
        device: where to train.

    Raises:
        ValueError: no pictures, a size that the network cannot cut (see `VQGAN.latents`), or fewer steps than the
            codebook needs to start.
    """
    _check(images, config.model.factor)
    _check(val_images, config.model.factor)
    _check_start(config, optim, next(iter(images.values())).shape[1])
    shown = _shown(val_images, config.sheet_images)

    def draw_sheet(model: VQGAN, step: int) -> None:
        if step in config.sheet_at:
            on_sheet(step, reconstruction_sheet(model, shown))

    torch.manual_seed(seed)
    trainee = VQGANTrainee(config, device, draw_sheet)
    part_size = optim.batch_size // optim.accumulate
    result = fit(
        trainee, lambda step, part: balanced_batch(images, part_size, seed, step, part), optim,
        seed=seed, work=work, name="vqgan", on_log=on_log, validate=lambda m, _: _validation(m, val_images),
    )  # fmt: skip
    model = cast(VQGAN, result.averaged)
    if isinstance(model.quantize, EmaCodebook) and not model.quantize.started:
        raise RuntimeError(f"train_vqgan: after {result.steps} steps the codes are still random: not saved")
    on_sheet(result.steps, reconstruction_sheet(model, shown))
    save_vqgan(model, out)
    return result


def _check(images: Mapping[str, Pixels], factor: int) -> None:
    sides = {pixels.shape[1:] for pixels in images.values()}
    if not images or any(len(pixels) == 0 for pixels in images.values()) or len(sides) > 1:
        raise ValueError(
            f"a VQGAN needs pictures of one size in each dataset, got "
            f"{ {name: pixels.shape for name, pixels in images.items()} }: run `dvc repro prepare_data`"
        )
    if any(side[0] % factor or side[0] != side[1] for side in sides):
        raise ValueError(f"pictures must be square with a side that {factor} divides, got {sides} (params.yaml)")


def _check_start(config: VQGANTraining, optim: Optimisation, side: int) -> None:
    """Refuse a training that ends before k-means has set the codes of an EMA codebook: it would save random ones."""
    if config.codebook.kind != "ema":
        return
    rows = optim.batch_size // optim.accumulate * (side // config.model.factor) ** 2
    calls = config.codebook.calls_before_start(config.model.codebook_size, rows)
    needed = -(-calls // optim.accumulate)
    if optim.steps < needed:
        raise ValueError(
            f"params.yaml:train_vqgan.optim.steps is {optim.steps}, but the codebook starts after {needed} steps: "
            f"raise steps, or lower start_after or samples_per_code of train_vqgan.training.codebook"
        )


def _shown(images: Mapping[str, Pixels], count: int) -> Pixels:
    """The first pictures of each dataset in turn, `count` in all."""
    names = sorted(images)
    turns = [images[names[i % len(names)]] for i in range(count)]
    return np.stack([pixels[(i // len(names)) % len(pixels)] for i, pixels in enumerate(turns)])


@torch.no_grad()
def reconstruct(model: VQGAN, images: Pixels, batch: int = 64) -> tuple[Pixels, Tensor]:
    """(Reconstructions uint8 (N, S, S, 3), codes (N, n)) in eval mode; the model's mode is left as it was."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts = [model(to_unit(torch.from_numpy(images[i : i + batch]).to(device))) for i in range(0, len(images), batch)]
    model.train(was_training)
    pixels: Pixels = torch.cat([to_pixels(part.images) for part in parts]).cpu().numpy()
    return pixels, torch.cat([part.codes for part in parts]).cpu()


def reconstruction_sheet(model: VQGAN, images: Pixels) -> Image.Image:
    """Originals in the upper row, their reconstructions below: (2 S) x (N S) pixels, N pictures."""
    rows = [np.concatenate(list(part), axis=1) for part in (images, reconstruct(model, images)[0])]
    return Image.fromarray(np.concatenate(rows, axis=0))


def _validation(model: Any, images: Mapping[str, Pixels]) -> dict[str, float]:
    """L1 (of pictures in [-1, 1]) and PSNR per dataset, usage and perplexity of the codebook over all of them."""
    out: dict[str, float] = {}
    codes = []
    for name, pixels in images.items():
        made, found = reconstruct(model, pixels)
        difference = made.astype(np.float64) - pixels
        out[f"{name}/l1"] = float(np.abs(difference).mean() / 127.5)
        error = (difference**2).mean((1, 2, 3)).clip(min=1e-3)  # a perfect picture counts as 78 dB
        out[f"{name}/psnr"] = float((10 * np.log10(255**2 / error)).mean())
        codes.append(found)
    usage, perplexity = codebook_statistics(torch.cat(codes), model.codebook_size)
    return out | {"codebook_usage": usage, "codebook_perplexity": perplexity}


def encode_images(model: VQGAN, images: Pixels, batch: int) -> NDArray[np.int64]:
    """Codes (N, n) of uint8 pictures (N, S, S, 3), `batch` at a time."""
    device = next(model.parameters()).device
    starts = range(0, len(images), batch)
    parts = [model.encode(to_unit(torch.from_numpy(images[i : i + batch]).to(device))).cpu() for i in starts]
    out: NDArray[np.int64] = torch.cat(parts).numpy()
    return out


def decode_codes(model: VQGAN, codes: NDArray[np.int64], batch: int = 64) -> Pixels:
    """Pictures uint8 (N, S, S, 3) of codes (N, n), rounded and clamped, `batch` at a time."""
    device = next(model.parameters()).device
    starts = range(0, len(codes), batch)
    tensor = torch.from_numpy(np.asarray(codes, dtype=np.int64)).to(device)
    out: Pixels = torch.cat([to_pixels(model.decode(tensor[i : i + batch])).cpu() for i in starts]).numpy()
    return out
