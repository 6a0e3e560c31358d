"""How good pictures are: FID, IS, KID, precision and recall over features, PSNR and SSIM over pixels.

All set metrics are torch-fidelity's own functions on features. Two sources of features:
- the finding reader (`phantom_image_quality`): names end with `(phantom features)`, comparable only among themselves;
- Inception (`inception_image_quality`, weights given as a file): the FID, IS, KID of the literature.

FID is biased upwards in small samples, by about D / N times the variance, and the more the fewer pictures: compare only
values with the same n (it stands beside each), never a phantom FID over 500 pictures with a paper's over 8000.
Shapes: N generated, M real pictures, D features, C classes, S picture side.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medim.metrics import finding_reader
from medim.metrics.bootstrap import Estimate, bootstrap_mean
from medim.metrics.finding_reader import FindingReader

Floats = NDArray[np.floating[Any]]
PHANTOM = " (phantom features)"
PEAK = 255.0
PSNR_OF_EQUAL = 100.0  # dB that identical pictures count as; infinity would be the mean of every set that holds one
LUMA = (0.299, 0.587, 0.114)  # Rec. 601
SSIM_WINDOW, SSIM_SIGMA, SSIM_K1, SSIM_K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_TENSORS = 566
NORMAL_95 = 1.96  # standard deviations each side that hold 95 % of a normal distribution


@dataclass(frozen=True)
class QualitySettings:
    """Settings of the set metrics; the values stand in params.yaml."""

    is_splits: int  # parts that IS is averaged over
    kid_subsets: int
    kid_subset_size: int  # at most the number of pictures
    neighbours: int  # k of precision and recall
    resamples: int  # bootstrap resamples of FID and IS; 0 = no intervals


def fid(generated: Floats, real: Floats) -> float:
    """Fréchet distance of (N, D) and (M, D) features (Heusel et al. 2017, arXiv:1706.08500), by torch-fidelity.

    Rank-deficient, though defined, where N or M is not above D.

    Raises:
        ValueError: fewer than 2 rows, or different D.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    _check_features(generated, real)
    ours, theirs = (fid_features_to_statistics(torch.from_numpy(rows)) for rows in (generated, real))
    return max(0.0, float(fid_statistics_to_metric(ours, theirs, False)[KEY_METRIC_FID]))  # rounding can give -1e-9


def inception_score(logits: Floats, splits: int, seed: int) -> float:
    """Inception score exp(mean KL(p(c|x) || p(c))) of (N, C) logits (Salimans et al. 2016, arXiv:1606.03498)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    if len(logits) < splits:
        raise ValueError(
            f"IS over {splits} splits needs as many pictures, got {len(logits)}: lower is_splits in params.yaml"
        )
    score = isc_features_to_metric(torch.from_numpy(logits), splits=splits, shuffle=True, rng_seed=seed)
    return float(score[KEY_METRIC_ISC_MEAN])


def kid(generated: Floats, real: Floats, settings: QualitySettings, seed: int) -> Estimate:
    """Kernel distance with the cubic kernel (Bińkowski et al. 2018, arXiv:1801.01401): unbiased, so it can be < 0.

    The interval is by subsampling (Politis, Romano & Wolf 1999, Sec. 2.2), since a bootstrap would repeat rows, which
    the estimator does not allow: subsets of k of N pictures vary by s² = v (1/k - 1/N) around the value of all, whose
    own variance is v / N, so the mean of S subsets has s² (k / (N - k) + 1 / S). N is the smaller number of pictures;
    no interval where k is N.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    _check_features(generated, real)
    fewest = min(len(generated), len(real))
    if fewest < settings.kid_subset_size:
        raise ValueError(
            f"kid_subset_size {settings.kid_subset_size} is above the {fewest} pictures: lower it in params.yaml"
        )
    score = kid_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), kid_subsets=settings.kid_subsets,
        kid_subset_size=settings.kid_subset_size, rng_seed=seed, verbose=False,
    )  # fmt: skip
    value, size = float(score[KEY_METRIC_KID_MEAN]), settings.kid_subset_size
    if fewest == size or settings.kid_subsets < 2:
        return Estimate(value, None, None, len(generated))
    part = size / (fewest - size) + 1 / settings.kid_subsets
    margin = NORMAL_95 * float(score[KEY_METRIC_KID_STD]) * part**0.5
    return Estimate(value, value - margin, value + margin, len(generated))


def precision_recall(generated: Floats, real: Floats, neighbours: int) -> tuple[float, float]:
    """Share of generated pictures within the real manifold, and the reverse (Kynkäänniemi 2019, arXiv:1904.06991)."""
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    _check_features(generated, real)
    if min(len(generated), len(real)) <= neighbours:
        raise ValueError(
            f"precision and recall with {neighbours} neighbours need more pictures than that, got {len(generated)} "
            f"generated and {len(real)} real: lower neighbours in params.yaml"
        )
    score = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=neighbours, prc_batch_size=10000,
        save_cpu_ram=True, verbose=False,
    )  # fmt: skip
    return float(score[KEY_METRIC_PRECISION]), float(score[KEY_METRIC_RECALL])


def _check_features(generated: Floats, real: Floats) -> None:
    if min(len(generated), len(real)) < 2 or generated.shape[1:] != real.shape[1:] or generated.ndim != 2:
        raise ValueError(f"features must be (N, D) and (M, D) with N, M >= 2, got {generated.shape} and {real.shape}")


def centred_bootstrap(
    statistic: Callable[..., float], samples: tuple[NDArray[Any], ...], seed: int, resamples: int
) -> tuple[float, float | None, float | None]:
    """Value of `statistic(*samples)` with a 95 % interval by resampling the rows of every sample.

    A resample repeats rows, which biases FID upwards once more; so the resampled values are centred on the value: the
    interval tells how much the value would vary with other pictures, not how biased it is. 0 resamples: no interval.
    """
    value = statistic(*samples)
    if resamples == 0:
        return value, None, None
    rng = np.random.default_rng(seed)
    draws = [statistic(*(rows[rng.integers(len(rows), size=len(rows))] for rows in samples)) for _ in range(resamples)]
    low, high = np.quantile(draws, (0.025, 0.975)) - np.mean(draws) + value
    return value, float(low), float(high)


def fid_estimate(generated: Floats, real: Floats, seed: int, resamples: int) -> Estimate:
    """FID with an interval (`centred_bootstrap`) and n = number of generated pictures."""
    value, low, high = centred_bootstrap(fid, (generated, real), seed, resamples)
    return Estimate(value, None if low is None else max(0.0, low), high, len(generated))


def set_scores(
    generated: Floats, real: Floats, logits: Floats, settings: QualitySettings, seed: int
) -> dict[str, Estimate]:
    """FID, IS, KID, precision, recall of (N, D) against (M, D) features and (N, C) class logits.

    Precision and recall have intervals with the other set's manifold held fixed.
    """
    n, m = len(generated), len(real)
    score = centred_bootstrap(
        lambda rows: inception_score(rows, settings.is_splits, seed), (logits,), seed, settings.resamples
    )
    inside = precision_recall(generated, real, settings.neighbours)
    return {
        "FID": fid_estimate(generated, real, seed, settings.resamples),
        "IS": Estimate(*score, n),
        "KID": kid(generated, real, settings, seed),
        "precision": _share(inside[0], n, seed, settings.resamples),
        "recall": _share(inside[1], m, seed, settings.resamples),
    }


def _share(share: float, n: int, seed: int, resamples: int) -> Estimate:
    if resamples == 0:
        return Estimate(share, None, None, n)
    hits = round(share * n)
    return bootstrap_mean(np.repeat([1.0, 0.0], [hits, n - hits]), seed, resamples)


def phantom_image_quality(
    reader: FindingReader, generated: NDArray[np.uint8], real: NDArray[np.uint8], settings: QualitySettings, seed: int
) -> dict[str, Estimate]:
    """`FID (phantom features)` and so on: (N, S, S, 3) generated against (M, S, S, 3) real pictures, uint8.

    IS uses `finding_reader.class_logits` (its classes: nothing found and each label, per domain).
    """
    scores = set_scores(
        finding_reader.features(reader, generated), finding_reader.features(reader, real),
        finding_reader.class_logits(reader, generated), settings, seed,
    )  # fmt: skip
    return {name + PHANTOM: score for name, score in scores.items()}


def load_inception(weights: Path, device: torch.device) -> Any:
    """torch-fidelity's Inception with the weights of a file; gives 2048 features and 1008 logits a picture.

    The file is read with weights_only=True first: torch-fidelity itself would unpickle anything.

    Raises:
        FileNotFoundError: names the file and where it is published.
        ValueError: the file is not a state dict of this network.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: download {INCEPTION_URL} to it")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{weights} is not a plain state dict ({error}); download {INCEPTION_URL} again") from error
    if not isinstance(state, dict) or len(state) != INCEPTION_TENSORS or "Conv2d_1a_3x3.conv.weight" not in state:
        found = f"{len(state)} entries" if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{weights} holds {found}, not the {INCEPTION_TENSORS} tensors of torch-fidelity's Inception "
            f"(the TorchScript file of StyleGAN and clean-fid is another format); download {INCEPTION_URL}"
        )
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    return network.to(device)


@torch.no_grad()
def inception_features(
    network: Any, batches: Iterable[NDArray[np.uint8]], device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Batches of (B, S, S, 3) uint8 -> (N, 2048) features and (N, 1008) logits; pictures are resized to 299 inside.

    Raises:
        ValueError: there is no batch.
    """
    rows = [network(torch.from_numpy(np.ascontiguousarray(b)).permute(0, 3, 1, 2).to(device)) for b in batches]
    if not rows:
        raise ValueError("no pictures to score: run `dvc repro generate` first")
    features, logits = (torch.cat([row[i].cpu() for row in rows]).numpy() for i in (0, 1))
    return features, logits


def inception_image_quality(
    weights: Path, generated: Iterable[NDArray[np.uint8]], real: Iterable[NDArray[np.uint8]], settings: QualitySettings,
    seed: int, device: torch.device,
) -> dict[str, Estimate]:  # fmt: skip
    """FID, IS, KID, precision, recall of the literature; pictures come in batches of (B, S, S, 3) uint8.

    One FID over 2048 features takes some 10 s on a CPU, so `settings.resamples` is meant to be 0 or small here.
    """
    network = load_inception(weights, device)
    features, logits = inception_features(network, generated, device)
    return set_scores(features, inception_features(network, real, device)[0], logits, settings, seed)


def psnr_values(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of each of (N, S, S, 3) uint8 pictures, over all channels, peak 255; (N,).

    Identical pictures count as PSNR_OF_EQUAL.
    """
    _check_pictures(images, reference)
    error = ((images.astype(np.float64) - reference.astype(np.float64)) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(PEAK**2 / error), PSNR_OF_EQUAL)


def ssim_values(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Structural similarity of the luminance of each of (N, S, S, 3) uint8 pictures; (N,), at most 1.

    Wang et al. 2004: Gaussian window of 11 x 11 with sigma 1.5, K1 = .01, K2 = .03, L = 255, population moments, mean
    over the places where the window lies inside the picture.

    Raises:
        ValueError: shapes differ, or the picture is smaller than the window.
    """
    _check_pictures(images, reference)
    if min(images.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {SSIM_WINDOW} pixels, got {images.shape[1:3]}")
    x, y = (pictures.astype(np.float64) @ np.array(LUMA) for pictures in (images, reference))
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    var_x, var_y = _window_mean(x * x) - mean_x**2, _window_mean(y * y) - mean_y**2
    cov = _window_mean(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    ratio = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    values: NDArray[np.float64] = ratio.mean((1, 2))
    return values


def _window_mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, H, W) -> (N, H - 10, W - 10): Gaussian-weighted means."""
    place = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(place**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    for axis in (1, 2):
        x = np.lib.stride_tricks.sliding_window_view(x, SSIM_WINDOW, axis) @ weights
    return x


def _check_pictures(images: NDArray[np.uint8], reference: NDArray[np.uint8]) -> None:
    if images.shape != reference.shape or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"pictures must both be (N, S, S, 3) with N >= 1, got {images.shape} and {reference.shape}")


def reconstruction_quality(
    images: NDArray[np.uint8], reference: NDArray[np.uint8], seed: int, resamples: int
) -> dict[str, Estimate]:
    """`psnr` (dB) and `ssim`: means over (N, S, S, 3) uint8 pictures with bootstrap intervals."""
    return {
        "psnr": bootstrap_mean(psnr_values(images, reference), seed, resamples),
        "ssim": bootstrap_mean(ssim_values(images, reference), seed, resamples),
    }
