"""Set metrics against closed forms and torch-fidelity itself; PSNR and SSIM against plain references."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.metrics import finding_reader, image_quality
from medim.metrics.finding_reader import FindingReader, ReaderConfig
from medim.metrics.image_quality import QualitySettings

SETTINGS = QualitySettings(is_splits=2, kid_subsets=5, kid_subset_size=16, neighbours=3, resamples=20)
CPU = torch.device("cpu")


def rows(n: int, d: int = 6, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, 1, (n, d)).astype(np.float32)


def pictures(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def reader() -> FindingReader:
    torch.manual_seed(0)
    return FindingReader(ReaderConfig({"a": ("x", "y"), "b": ("z",)}, width=4, size=32)).eval()


def test_fid_of_a_set_with_itself_is_zero():
    assert image_quality.fid(rows(50), rows(50)) == pytest.approx(0, abs=1e-5)


def test_fid_of_shifted_features_is_the_squared_shift():
    """Equal covariances: only |mu1 - mu2|^2 = D * shift^2 is left."""
    assert image_quality.fid(rows(50), rows(50) + np.float32(2)) == pytest.approx(6 * 4, rel=1e-4)


def test_fid_of_scaled_features_by_hand():
    """Covariances C and 9 C: trace(C + 9 C - 2 * 3 C) = 4 trace C, and means of 0."""
    x = rows(50) - rows(50).mean(0)
    assert image_quality.fid(x, 3 * x) == pytest.approx(4 * np.trace(np.cov(x, rowvar=False)), rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(-2, 2))
def test_fid_is_symmetric_and_not_negative(seed, shift):
    a, b = rows(20, 4, shift, seed), rows(30, 4, 0, seed + 1)
    assert image_quality.fid(a, b) == pytest.approx(image_quality.fid(b, a), rel=1e-3, abs=1e-4)
    assert image_quality.fid(a, b) >= 0


def test_fid_falls_with_more_pictures():
    """The bias that the docstring warns of: two samples of one distribution."""
    few = image_quality.fid(rows(40, 16, seed=1), rows(40, 16, seed=2))
    many = image_quality.fid(rows(4000, 16, seed=1), rows(4000, 16, seed=2))
    assert few > 10 * many


def test_inception_score_by_hand():
    """All classes equally often and surely: IS = C; the same answer for all: IS = 1."""
    sure = np.tile(np.eye(5, dtype=np.float32) * 200, (8, 1))
    assert image_quality.inception_score(sure, 1, 0) == pytest.approx(5, rel=1e-6)
    assert image_quality.inception_score(np.zeros((12, 5), np.float32), 2, 0) == pytest.approx(1)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel():
    """One subset of everything, the kernel (x.y / D + 1)^3 written out."""
    x, y = rows(12).astype(np.float64), rows(12, shift=0.5, seed=1).astype(np.float64)
    kernel = lambda a, b: (a @ b.T / 6 + 1) ** 3  # noqa: E731
    off = 1 - np.eye(12)
    expected = (kernel(x, x) * off).sum() / 132 + (kernel(y, y) * off).sum() / 132 - 2 * kernel(x, y).mean()
    one = QualitySettings(2, 1, 12, 3, 0)
    assert image_quality.kid(x, y, one, seed=0).value == pytest.approx(expected, rel=1e-9)


def test_the_interval_of_kid_has_the_width_of_what_new_pictures_give():
    """Against the spread of the value over pictures drawn anew, which subsampling only estimates."""
    settings = QualitySettings(1, 50, 100, 3, 0)
    new = [
        image_quality.kid(rows(300, 4, seed=2 * s), rows(300, 4, shift=0.5, seed=2 * s + 1), settings, seed=s)
        for s in range(30)
    ]
    spread = float(np.std([one.value for one in new]))
    estimated = float(np.mean([one.high - one.low for one in new])) / (2 * 1.96)
    assert estimated == pytest.approx(spread, rel=0.4)
    assert image_quality.kid(rows(40), rows(40, seed=1), QualitySettings(1, 5, 40, 3, 0), 0).low is None


def test_precision_and_recall_of_separate_and_equal_sets():
    assert image_quality.precision_recall(rows(30), rows(30), 3) == (1, 1)
    assert image_quality.precision_recall(rows(30), rows(30, shift=100), 3) == (0, 0)


def test_phantom_scores_equal_calculate_metrics_of_torch_fidelity():
    """The same reader registered as an extractor: torch-fidelity's own path over the same pictures."""
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    network = reader()

    class Extractor(FeatureExtractorBase):
        def __init__(self, name, features_list, feature_extractor_weights_path=None, **_):
            super().__init__(name, features_list)
            self.feature_extractor_internal_dtype = torch.float32

        def forward(self, batch):
            images = batch.permute(0, 2, 3, 1).numpy()
            both = {"features": finding_reader.features, "logits": finding_reader.class_logits}
            return tuple(torch.from_numpy(both[name](network, images)) for name in self.features_list)

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, images):
            self.images = images

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return torch.from_numpy(self.images[index]).permute(2, 0, 1)

    torch_fidelity.register_feature_extractor("medim-test-reader", Extractor)
    generated, real = pictures(24), pictures(20, seed=1)
    theirs = torch_fidelity.calculate_metrics(
        input1=Pictures(generated), input2=Pictures(real), cuda=False, isc=True, fid=True, kid=True, prc=True,
        feature_extractor="medim-test-reader", isc_splits=2, kid_subsets=5, kid_subset_size=16, prc_neighborhood=3,
        rng_seed=7, batch_size=64, save_cpu_ram=True, cache=False, verbose=False,
    )  # fmt: skip
    ours = image_quality.phantom_image_quality(network, generated, real, SETTINGS, seed=7)
    names = {
        "FID": "frechet_inception_distance", "IS": "inception_score_mean", "KID": "kernel_inception_distance_mean",
        "precision": "precision", "recall": "recall",
    }  # fmt: skip
    for name, key in names.items():
        score = ours[f"{name} (phantom features)"]
        assert score.value == pytest.approx(theirs[key], rel=1e-5, abs=1e-7), name
        assert score.n == (20 if name == "recall" else 24)


def test_intervals_hold_the_value_and_are_a_function_of_the_seed():
    a, b = rows(60), rows(60, shift=0.3, seed=1)
    first = image_quality.fid_estimate(a, b, seed=0, resamples=30)
    assert first == image_quality.fid_estimate(a, b, seed=0, resamples=30)
    assert first.low < first.value < first.high
    assert first.value == pytest.approx(image_quality.fid(a, b))
    assert image_quality.fid_estimate(a, b, 0, 0)[1:] == (None, None, 60)


def test_psnr_by_hand():
    black, grey = np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 16, 16, 3), 51, np.uint8)
    assert image_quality.psnr_values(grey, black) == pytest.approx([20 * math.log10(255 / 51)])
    assert image_quality.psnr_values(grey, grey) == [image_quality.PSNR_OF_EQUAL]


def plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM window by window, straight from Wang et al. 2004, eqs. 13-16."""
    x, y = (p @ np.array([0.299, 0.587, 0.114]) for p in (x.astype(float), y.astype(float)))
    w = np.array([[math.exp(-(i**2 + j**2) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    w /= w.sum()
    scores = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, cov = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum(), (w * (a - ma) * (b - mb)).sum()
            scores.append(
                (2 * ma * mb + 6.5025) * (2 * cov + 58.5225) / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225))
            )
    return float(np.mean(scores))


def test_ssim_equals_a_plain_reference():
    x = pictures(2, 18)
    y = np.clip(x.astype(int) + np.random.default_rng(1).integers(-40, 40, x.shape), 0, 255).astype(np.uint8)
    np.testing.assert_allclose(
        image_quality.ssim_values(x, y), [plain_ssim(a, b) for a, b in zip(x, y, strict=True)], rtol=1e-9
    )
    np.testing.assert_allclose(image_quality.ssim_values(x, x), 1)


def test_reconstruction_quality_is_the_mean():
    x, y = pictures(5, 16), pictures(5, 16, seed=1)
    scores = image_quality.reconstruction_quality(x, y, seed=0, resamples=50)
    assert scores["psnr"].value == pytest.approx(image_quality.psnr_values(x, y).mean())
    assert scores["ssim"].n == 5 and scores["ssim"].low <= scores["ssim"].value <= scores["ssim"].high


def test_errors_name_what_to_change(tmp_path):
    with pytest.raises(ValueError, match="kid_subset_size 16 is above the 10 pictures"):
        image_quality.kid(rows(10), rows(40), SETTINGS, 0)
    with pytest.raises(ValueError, match="lower is_splits"):
        image_quality.inception_score(rows(1), 2, 0)
    with pytest.raises(ValueError, match="lower neighbours"):
        image_quality.precision_recall(rows(3), rows(40), 3)
    with pytest.raises(ValueError, match="N, M >= 2"):
        image_quality.fid(rows(10, 4), rows(10, 5))
    with pytest.raises(ValueError, match="at least 11"):
        image_quality.ssim_values(pictures(1, 8), pictures(1, 8))
    with pytest.raises(ValueError, match="N >= 1"):
        image_quality.psnr_values(pictures(1, 8), pictures(1, 9))
    with pytest.raises(FileNotFoundError, match="download https://github"):
        image_quality.load_inception(tmp_path / "inception.pth", CPU)
    with pytest.raises(ValueError, match="no pictures"):
        image_quality.inception_features(None, [], CPU)


def test_a_file_of_another_format_is_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="holds 1 entries, not the 566 tensors"):
        image_quality.load_inception(tmp_path / "other.pth", CPU)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran_code",)


def test_a_pickle_with_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not a plain state dict"):
        image_quality.load_inception(tmp_path / "evil.pth", CPU)
    assert not Path("ran_code").exists()


@pytest.fixture
def random_inception(tmp_path, monkeypatch) -> Path:
    """A file of exactly the real format: every tensor of torch-fidelity's Inception, at random."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def test_inception_from_a_file_of_the_real_format(random_inception):
    network = image_quality.load_inception(random_inception, CPU)
    features, logits = image_quality.inception_features(network, [pictures(2, 64), pictures(1, 64, 3)], CPU)
    assert features.shape == (3, 2048) and logits.shape == (3, 1008)
    np.testing.assert_allclose(logits, features @ network.fc.weight.numpy().T, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_inception_scores_have_the_names_of_the_literature(random_inception):
    few = QualitySettings(is_splits=1, kid_subsets=2, kid_subset_size=4, neighbours=2, resamples=0)
    batches = [pictures(4, 64)]
    scores = image_quality.inception_image_quality(random_inception, batches, [pictures(5, 64, 1)], few, 0, CPU)
    assert set(scores) == {"FID", "IS", "KID", "precision", "recall"} and scores["FID"].n == 4


@pytest.mark.paper
@pytest.mark.gpu
def test_inception_scores_of_real_weights():
    """Needs MEDIM_INCEPTION: noise against noise is close, noise against flat pictures is far."""
    weights, device = Path(os.environ["MEDIM_INCEPTION"]), torch.device("cuda")
    network = image_quality.load_inception(weights, device)
    flat = np.full((64, 64, 64, 3), 128, np.uint8)
    noise, more, plain = (
        image_quality.inception_features(network, [images], device)[0]
        for images in (pictures(64, 64), pictures(64, 64, 1), flat)
    )
    assert image_quality.fid(noise, more) < 0.1 * image_quality.fid(noise, plain)
