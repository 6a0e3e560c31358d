"""Losses of the VQGAN: pixels, perception (LPIPS, where its weights are given; SSIM, which needs none) and a patch
discriminator.

Source: taming-transformers, taming/modules/losses/vqperceptual.py (VQLPIPSWithDiscriminator) and
taming/modules/discriminator/model.py (NLayerDiscriminator).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VQGANLossSettings:
    """Weights of the losses; the values stand in params.yaml."""

    ssim_weight: float  # of 1 - SSIM; 0 = off
    perceptual_weight: float  # of LPIPS; 0 = off (the weights files are then not needed)
    lpips_vgg: str | None  # torchvision's vgg16 weights
    lpips_heads: str | None  # the lpips package's weights/v0.1/vgg.pth
    disc_weight: float  # of the adversarial loss, times the adaptive weight; 0 = no discriminator
    disc_start: int  # step from which the generator sees the discriminator
    disc_ch: int  # channels of its first layer
    disc_layers: int  # its halvings


class PatchDiscriminator(nn.Sequential):
    """Real or not, per patch: images (B, 3, S, S) -> logits (B, 1, ~S / 2**layers, ~S / 2**layers).

    taming's NLayerDiscriminator with GroupNorm in place of BatchNorm: the batches of a VQGAN are small, and real
    and reconstructed pictures are judged in separate batches, so that batch statistics would tell them apart.
    """

    def __init__(self, ch: int, layers: int) -> None:
        parts: list[nn.Module] = [nn.Conv2d(3, ch, 4, 2, 1), nn.LeakyReLU(0.2)]
        widths = [ch * min(2**i, 8) for i in range(layers + 1)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            parts.append(nn.Conv2d(widths[i - 1], widths[i], 4, stride, 1, bias=False))
            parts += [nn.GroupNorm(min(8, widths[i]), widths[i]), nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the discriminator from its logits on real and on reconstructed pictures; scalar."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


SSIM_WINDOW = 7  # pixels a side
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # of pictures in [0, 1]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images (B, 3, S, S) in [-1, 1], S >= 7: scalar, at most 1, which is for equal ones.

    Wang et al. 2004, Eq. 13, with a uniform window, of the intensities in [0, 1]. As a loss beside L1 (Zhao et al.
    2017, arXiv:1511.08861) it stands in for LPIPS where no weights are at hand: it compares the contrasts of a window
    with those of the same window, so that a thin line in a calm place costs what a large structure does, and L1 alone
    leaves the line out. Means of windows are products with band matrices, in the pictures' own type whatever autocast
    says: of three channels a CPU pools at a fifth of that speed.
    """
    side = a.shape[-1]
    offset = torch.arange(side, device=a.device) - torch.arange(side - SSIM_WINDOW + 1, device=a.device)[:, None]
    band = ((offset >= 0) & (offset < SSIM_WINDOW)).to(a.dtype) / SSIM_WINDOW  # (windows, side)

    def mean(x: Tensor) -> Tensor:
        return band @ x @ band.T

    with torch.autocast(a.device.type, enabled=False):
        a, b = (a + 1) / 2, (b + 1) / 2
        mean_a, mean_b = mean(a), mean(b)
        var_a, var_b, cov = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
        return (luminance * (2 * cov + SSIM_C2) / (var_a + var_b + SSIM_C2)).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """|d reconstruction / d last| / |d adversarial / d last|, at most 1e4: keeps the two pulls on the decoder level.

    Esser et al. 2021, Eq. 7 (their delta 1e-4 as in the code). `last`: weights of the decoder's last layer.
    """
    (a,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (b,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (a.norm() / (b.norm() + 1e-4)).clamp(0, 1e4).detach()


# index of the last layer of each slice in torchvision's vgg16.features, and its channels: relu1_2 ... relu5_3
VGG_SLICES = ((3, 64), (8, 128), (15, 256), (22, 512), (29, 512))
VGG_PLAN = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0 = halve


class LPIPS(nn.Module):
    """Perceptual distance of Zhang et al. 2018 (arXiv:1801.03924), version 0.1 on VGG16; frozen.

    Source: https://github.com/richzhang/PerceptualSimilarity, lpips/lpips.py. Differs in that the weights are given by
    the caller (`load_lpips`) instead of downloaded, and that dropout, idle in evaluation, is left out.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out in VGG_PLAN:
            if out == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
            width = out
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList([torch.zeros(1, ch, 1, 1) for _, ch in VGG_SLICES])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def slices(self, images: Tensor) -> list[Tensor]:
        """The five feature maps of images (B, 3, S, S) in [-1, 1], each with unit length over its channels."""
        h, out, ends = (images - self.shift) / self.scale, [], {index for index, _ in VGG_SLICES}
        for index, layer in enumerate(self.features):
            h = layer(h)
            if index in ends:
                out.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,) distances of two batches of images (B, 3, S, S) in [-1, 1]; S >= 16."""
        parts = zip(self.slices(a), self.slices(b), self.heads, strict=True)
        return torch.stack([((x - y).square() * w).sum(1).mean((1, 2)) for x, y, w in parts]).sum(0)


def load_lpips(vgg: Path, heads: Path) -> LPIPS:
    """LPIPS from torchvision's `vgg16-397923af.pth` (any of its state dicts) and the lpips package's `v0.1/vgg.pth`.

    Raises:
        FileNotFoundError: a file is missing; says where it is published.
        RuntimeError: a file holds other names or shapes; torch names them.
    """
    sources = {
        vgg: "https://download.pytorch.org/models/vgg16-397923af.pth",
        heads: "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/vgg.pth",
    }
    for path, source in sources.items():
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: download {source}, or set "
                f"params.yaml:train_vqgan.training.loss.perceptual_weight to 0"
            )
    state = {k: v for k, v in _tensors(vgg).items() if k.startswith("features.")}
    found = _tensors(heads)
    state |= {key.replace("lin", "heads.").replace(".model.1.weight", ""): value for key, value in found.items()}
    model = LPIPS()
    state |= {"shift": model.shift, "scale": model.scale}
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def _tensors(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return found
