"""Training of a very small VQGAN: it learns, it resumes exactly, and its batches are balanced."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medim.tokenizers.codebook import CodebookSettings
from medim.tokenizers.vqgan import VQGANConfig, load_vqgan, to_pixels, to_unit
from medim.tokenizers.vqgan_loss import VQGANLossSettings
from medim.tokenizers.vqgan_training import (
    VQGANTrainee,
    VQGANTraining,
    balanced_batch,
    decode_codes,
    encode_images,
    reconstruct,
    train_vqgan,
)
from medim.training import Optimisation

SETTINGS = VQGANTraining(
    model=VQGANConfig(
        codebook_size=64, embed_dim=8, z_channels=16, ch=16, ch_mult=(1, 2), num_res_blocks=1, norm_groups=2
    ),
    codebook=CodebookSettings(
        kind="ema", beta=0.25, decay=0.9, restart_below=0.1, start_after=12, samples_per_code=4
    ),
    loss=VQGANLossSettings(
        ssim_weight=0.3, perceptual_weight=0.0, lpips_vgg=None, lpips_heads=None,
        disc_weight=0.1, disc_start=20, disc_ch=8, disc_layers=1,
    ),
    sheet_at=(2,),
    sheet_images=4,
)  # fmt: skip
OPTIM = Optimisation(
    steps=30, batch_size=8, accumulate=2, lr=2e-3, warmup=2, restarts=1, weight_decay=0.0, beta1=0.9, beta2=0.99,
    clip=1.0, ema=0.5, precision="fp32", checkpoint_every=7, validate_every=15, log_every=5,
)  # fmt: skip


PALETTE = np.array(
    [[220, 40, 40], [40, 200, 60], [50, 60, 230], [240, 230, 60], [250, 250, 250], [10, 10, 10]], np.uint8
)


def squares(count, seed, size=16):
    """A coloured square on a ground of another colour."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, size, size, 3), np.uint8)
    for image in images:
        image[:] = PALETTE[rng.integers(len(PALETTE))]
        top, left = 2 * rng.integers(size // 4, size=2)
        image[top : top + size // 2, left : left + size // 2] = PALETTE[rng.integers(len(PALETTE))]
    return images


DATA = {"bright": squares(60, 0), "dark": squares(40, 1) // 2}
VAL = {"bright": squares(16, 2), "dark": squares(16, 3) // 2}


def train(folder, optim=OPTIM, settings=SETTINGS, on_log=lambda step, values: None, sheets=None):
    return train_vqgan(
        DATA, VAL, settings, optim, seed=5, work=folder / "work", out=folder / "out", on_log=on_log,
        on_sheet=lambda step, sheet: None if sheets is None else sheets.append((step, sheet)),
        device=torch.device("cpu"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, logs, sheets = tmp_path_factory.mktemp("vqgan"), {}, []
    train(folder, on_log=lambda step, values: logs.setdefault(step, {}).update(values), sheets=sheets)
    return folder, logs, sheets


def test_a_tiny_training_beats_the_mean_image(trained):
    folder, _, _ = trained
    model = load_vqgan(folder / "out")
    for name, pixels in VAL.items():
        made = decode_codes(model, encode_images(model, pixels, batch=5), batch=7)
        mean = DATA[name].mean(0)
        assert np.abs(made - pixels.astype(float)).mean() < 0.9 * np.abs(mean - pixels).mean(), name


def test_logs_and_sheets(trained):
    _, logs, sheets = trained
    assert {"val/bright/l1", "val/dark/psnr", "val/codebook_usage", "val/codebook_perplexity"} <= logs[15].keys()
    assert logs[30]["val/bright/l1"] < logs[15]["val/bright/l1"]
    assert "adaptive_weight" in logs[30] and "adaptive_weight" not in logs[15]
    assert "discriminator/loss" in logs[5]  # it learns before the generator listens
    assert [step for step, _ in sheets] == [2, 30]
    sheet = sheets[0][1]
    assert sheet.size == (4 * 16, 2 * 16)
    assert np.array_equal(np.asarray(sheet)[:16, 16:32], VAL["dark"][0])


def test_an_interrupted_training_ends_with_the_same_bytes(trained, tmp_path):
    class Killed(Exception):
        pass

    def kill(step, values):
        if step == 25:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, on_log=kill)
    result = train(tmp_path)
    assert result.started_at == 21
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (trained[0] / "out" / name).read_bytes()


def test_training_without_discriminator_with_gradient_learned_codes(tmp_path):
    settings = replace(
        SETTINGS,
        loss=replace(SETTINGS.loss, disc_weight=0.0),
        codebook=replace(SETTINGS.codebook, kind="learned"),
    )
    logs = {}
    result = train(tmp_path, replace(OPTIM, steps=3), settings, lambda step, values: logs.update(values))
    assert result.steps == 3
    assert not any(key.startswith("discriminator") for key in logs)


def test_discriminator_sees_the_generators_reconstructions():
    trainee = VQGANTrainee(SETTINGS, torch.device("cpu"), lambda model, step: None)
    batch, generator = torch.from_numpy(DATA["dark"][:4]), torch.Generator()
    loss, _ = trainee.loss("generator", batch, 20, generator)
    loss.backward()
    assert all(p.grad is None for p in trainee.discriminator.parameters())
    images, made = trainee.kept[0]
    expected = 0.5 * (
        (1 - trainee.discriminator(images)).relu().mean() + (1 + trainee.discriminator(made)).relu().mean()
    )
    loss, _ = trainee.loss("discriminator", batch, 20, generator)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in trainee.discriminator.parameters())
    assert not trainee.kept


def test_perceptual_weight_needs_its_files():
    settings = replace(SETTINGS, loss=replace(SETTINGS.loss, perceptual_weight=1.0))
    with pytest.raises(ValueError, match="lpips_vgg and lpips_heads"):
        VQGANTrainee(settings, torch.device("cpu"), lambda model, step: None)


@given(st.integers(1, 13), st.integers(0, 2**31), st.integers(0, 10**6), st.integers(0, 3))
def test_batches_are_balanced_and_pure(size, seed, step, part):
    data = {name: np.full((n, 2, 2, 3), i, np.uint8) for i, (name, n) in enumerate([("a", 3), ("b", 50), ("c", 7)])}
    batch = balanced_batch(data, size, seed, step, part)
    assert torch.equal(batch, balanced_batch(data, size, seed, step, part))
    counts = torch.bincount(batch[:, 0, 0, 0].long(), minlength=3)
    assert int(counts.max() - counts.min()) <= 1


def test_pixels_survive_the_way_there_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_pixels(to_unit(pixels)), pixels)
    assert to_unit(pixels).min() == -1 and to_unit(pixels).max() == 1


def test_encoding_does_not_depend_on_the_batch(trained):
    model = load_vqgan(trained[0] / "out")
    codes = encode_images(model, VAL["dark"], batch=16)
    assert codes.shape == (16, 64) and codes.dtype == np.int64
    assert np.array_equal(encode_images(model, VAL["dark"], batch=3), codes)
    pixels, again = reconstruct(model, VAL["dark"], batch=5)
    assert np.array_equal(again.numpy(), codes)
    apart = np.abs(pixels.astype(int) - decode_codes(model, codes).astype(int))
    assert apart.max() <= 1 and apart.mean() < 1e-3  # other batches differ in last bits, which rounding may show


@pytest.mark.parametrize("images", [{}, {"a": np.zeros((0, 8, 8, 3), np.uint8)}, {"a": squares(1, 0, 12)[:, :, :11]}])
def test_pictures_that_cannot_be_trained_on(images, tmp_path):
    with pytest.raises(ValueError, match="pictures"):
        train_vqgan(
            images, VAL, SETTINGS, OPTIM, seed=0, work=tmp_path, out=tmp_path, on_log=lambda s, v: None,
            on_sheet=lambda s, i: None, device=torch.device("cpu"),
        )  # fmt: skip


def test_a_training_too_short_for_its_codebook_is_refused_before_it_starts(tmp_path):
    # 12 parts of a batch, two a step
    with pytest.raises(ValueError, match=r"train_vqgan.optim.steps is 5, but the codebook starts after 6 steps: raise"):
        train(tmp_path, replace(OPTIM, steps=5))
    assert not (tmp_path / "work").exists() and not (tmp_path / "out").exists()
    train(tmp_path, replace(OPTIM, steps=6))
    assert (tmp_path / "out").is_dir()


def test_random_codes_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("medim.tokenizers.vqgan_training._check_start", lambda *_: None)
    with pytest.raises(RuntimeError, match="after 5 steps the codes are still random"):
        train(tmp_path, replace(OPTIM, steps=5))
    assert not (tmp_path / "out").exists()
