"""What an image tokenizer keeps of the test pictures, per dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medim.evaluation import Reference, Scores, states_of
from medim.metrics.bootstrap import Estimate
from medim.metrics.finding_reader import features
from medim.metrics.findings import finding_f1_ratio, finding_scores
from medim.metrics.image_quality import centred_bootstrap, fid_estimate, reconstruction_quality
from medim.tokenizers.codebook import codebook_statistics
from medim.tokenizers.vqgan import VQGAN
from medim.tokenizers.vqgan_training import Pixels, reconstruct


@dataclass(frozen=True)
class TokenizerEvaluation:
    """Bootstrap draws of the intervals; the values stand in params.yaml."""

    resamples: int  # of means over pictures
    set_resamples: int  # of FID and the codebook's use, which are of a set of pictures


def clean_pictures(reference: Reference) -> Pixels:
    """The noise-free drawings of drawn test pairs; of imported ones the pictures themselves."""
    if reference.domain is None:
        return reference.test_images
    size = reference.test_images.shape[1]
    scenes = [json.loads(pair.scene or "{}") for pair in reference.test]
    return np.stack([reference.domain.render(scene, size, noise=False).image for scene in scenes])


def evaluate_vqgan(
    vqgan: VQGAN, reference: Reference, settings: TokenizerEvaluation, seed: int
) -> tuple[Scores, dict[str, Estimate], Pixels]:
    """Metrics `<dataset>/vqgan/<metric>`, finding F1 per label on reconstructions, and the reconstructions.

    psnr and ssim are held against the noise-free drawing, so that a tokenizer is not asked to keep noise;
    `reconstruction FID (phantom features)` against the pictures themselves.
    """
    pixels, codes = reconstruct(vqgan, reference.test_images)
    resamples = settings.resamples
    scores = reconstruction_quality(pixels, clean_pictures(reference), seed, resamples)
    scores |= codebook_scores(codes.numpy(), vqgan.codebook_size, seed, settings.set_resamples)
    if len(pixels) > 1:
        made, real = features(reference.reader, pixels), features(reference.reader, reference.test_images)
        scores["reconstruction FID (phantom features)"] = fid_estimate(made, real, seed, settings.set_resamples)
    per_label: dict[str, Estimate] = {}
    if reference.labels:
        truth, of_real = states_of(reference.test), reference.read_images(reference.test_images)
        of_made = reference.read_images(pixels)
        scores |= finding_f1_ratio(truth, of_made, of_real, reference.labels, seed, resamples)
        per_label = finding_scores(truth, of_made, reference.labels, seed, resamples)
        real_scores = finding_scores(truth, of_real, reference.labels, seed, resamples)
        per_label |= {f"{name} of originals": score for name, score in real_scores.items()}
    return {f"{reference.dataset}/vqgan/{name}": score for name, score in scores.items()}, per_label, pixels


def codebook_scores(codes: NDArray[np.int64], size: int, seed: int, resamples: int) -> dict[str, Estimate]:
    """Usage and perplexity of the codes (N, n) of N pictures; a draw of pictures has fewer codes, so it is centred."""

    def statistic(which: int) -> Callable[[NDArray[Any]], float]:
        return lambda rows: codebook_statistics(torch.from_numpy(rows), size)[which]

    return {
        name: Estimate(*centred_bootstrap(statistic(which), (codes,), seed, resamples), len(codes))
        for which, name in enumerate(("codebook_usage", "codebook_perplexity"))
    }
