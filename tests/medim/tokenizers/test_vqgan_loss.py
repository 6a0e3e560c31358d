"""Losses against closed forms, and LPIPS against a plain reference and the published files' formats."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medim.tokenizers.vqgan_loss import LPIPS, PatchDiscriminator, adaptive_weight, hinge_loss, load_lpips, ssim


def test_hinge_loss_closed_form():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])
    assert float(hinge_loss(real, fake)) == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 1) / 2))


def test_ssim_is_its_definition_window_by_window():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.rand(2, 3, 9, 9, generator=g, dtype=torch.float64) * 2 - 1 for _ in range(2))
    values = []
    for n, c, y, x in itertools.product(range(2), range(3), range(3), range(3)):
        p, q = ((z[n, c, y : y + 7, x : x + 7] + 1) / 2 for z in (a, b))
        cov = ((p - p.mean()) * (q - q.mean())).mean()
        luminance = (2 * p.mean() * q.mean() + 0.0001) / (p.mean() ** 2 + q.mean() ** 2 + 0.0001)
        values.append(luminance * (2 * cov + 0.0009) / (p.var(correction=0) + q.var(correction=0) + 0.0009))
    assert float(ssim(a, b)) == pytest.approx(float(sum(values)) / len(values))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(ssim(a.float(), b.float())) == pytest.approx(float(ssim(a, b)), rel=1e-4)  # bfloat16: 1e-2
    assert float(ssim(a, a)) == pytest.approx(1) and float(ssim(a, b)) < 0.3
    assert float(ssim(0.2 * a, 0.2 * a + 0.04)) > 0.98  # a little lighter, around the middle grey, is nearly the same


def test_discriminator_has_the_shape_of_taming():
    disc = PatchDiscriminator(64, 3)
    assert disc(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)  # the 70 x 70 patches of pix2pix
    convolutions = [tuple(m.weight.shape) for m in disc if isinstance(m, nn.Conv2d)]
    assert convolutions == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)]
    assert [m.bias is None for m in disc if isinstance(m, nn.Conv2d)] == [False, True, True, True, False]


def test_discriminator_judges_each_picture_alone():
    torch.manual_seed(0)
    disc = PatchDiscriminator(8, 2)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(disc(images)[:1], disc(images[:1]))


def test_adaptive_weight_is_the_ratio_of_the_gradients():
    last = torch.ones(4, requires_grad=True)
    weight = adaptive_weight((3 * last).sum(), (2 * last).sum(), last)
    assert float(weight) == pytest.approx(6 / (4 + 1e-4))
    assert float(adaptive_weight((1e9 * last).sum(), (0 * last).sum(), last)) == 1e4


def vgg16_state():
    """A file with exactly the names and shapes of torchvision's vgg16 (without the 100 million of its classifier)."""
    import torchvision

    with torch.device("meta"):
        full = torchvision.models.vgg16()
    torch.manual_seed(0)
    state = {k: torch.randn(v.shape) * (0.05 if v.dim() > 1 else 0.01) for k, v in full.features.state_dict().items()}
    return {f"features.{key}": value for key, value in state.items()} | {"classifier.6.bias": torch.zeros(1000)}


def heads_state():
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    vgg, heads = vgg16_state(), heads_state()
    torch.save(vgg, folder / "vgg16-397923af.pth")
    torch.save(heads, folder / "vgg.pth")
    return folder, vgg, heads


def reference_distance(a, b, vgg, heads):
    """LPIPS written out from the paper's Eq. 1 with functional calls on the published names."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = (a - shift) / scale, (b - shift) / scale
    total = torch.zeros(len(a))
    for i, convolutions in enumerate([(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]):
        if i:
            x, y = F.max_pool2d(x, 2), F.max_pool2d(y, 2)
        for c in convolutions:
            w, bias = vgg[f"features.{c}.weight"], vgg[f"features.{c}.bias"]
            x, y = (F.relu(F.conv2d(v, w, bias, padding=1)) for v in (x, y))
        unit = [v / (torch.linalg.vector_norm(v, dim=1, keepdim=True) + 1e-10) for v in (x, y)]
        total += F.conv2d((unit[0] - unit[1]) ** 2, heads[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
    return total


def test_lpips_equals_the_reference_from_published_files(files):
    folder, vgg, heads = files
    model = load_lpips(folder / "vgg16-397923af.pth", folder / "vgg.pth")
    a, b = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(model(a, b), reference_distance(a, b, vgg, heads), rtol=1e-4, atol=1e-5)
    assert model(a, a).abs().max() == 0
    assert not any(p.requires_grad for p in model.parameters())


def test_lpips_passes_gradients_to_the_pictures():
    model = LPIPS()
    for head in model.heads:
        head.fill_(1.0)
    a = torch.rand(1, 3, 16, 16, requires_grad=True)
    model(a, torch.zeros(1, 3, 16, 16)).sum().backward()
    assert a.grad is not None and float(a.grad.abs().sum()) > 0


def test_missing_weights_say_where_they_are_published(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download\.pytorch\.org"):
        load_lpips(tmp_path / "vgg16.pth", files[0] / "vgg.pth")


def test_file_of_another_network_is_refused(files, tmp_path):
    heads = heads_state()
    del heads["lin4.model.1.weight"]
    torch.save(heads, tmp_path / "vgg.pth")
    with pytest.raises(RuntimeError, match=r"heads\.4"):
        load_lpips(files[0] / "vgg16-397923af.pth", tmp_path / "vgg.pth")
