"""Residual network: pictures to the features of their patches, as R2Gen and R2GenCMN see them.

Published (cuhksz-nlp/R2Gen, modules/visual_extractor.py): ResNet-101 (He et al. 2016, arXiv:1512.03385) without its
pooling and classifier, 224 pixels to 7 x 7 patches of 2048 features. Here `transformers.ResNetModel`, the same network
with other parameter names, at sizes from the settings: one patch per 2^(stages + 1) pixels a side.
Several pictures of one study (R2Gen takes two of IU X-Ray) give their patches one after the other; studies with fewer
are padded and masked, which the published code cannot do.

Letters: B studies, W views a study, S pixels a side, n patches a view, d features a patch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LAYER_TYPES = ("basic", "bottleneck")
PIXELS = ("unit", "imagenet")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1], torchvision's
SIZES = ("embedding_size", "hidden_sizes", "depths", "layer_type")  # that a pretrained folder must share


@dataclass(frozen=True)
class ExtractorSettings:
    """Sizes of the residual network; the values stand in params.yaml, the names are those of `ResNetConfig`."""

    embedding_size: int  # channels of the first convolution; published: 64
    hidden_sizes: tuple[int, ...]  # channels of each stage; published: 256, 512, 1024, 2048
    depths: tuple[int, ...]  # blocks of each stage; published: 3, 4, 23, 3
    layer_type: str  # basic | bottleneck (published)
    pixels: str  # unit: pictures as they come, in [-1, 1] | imagenet: scaled as torchvision's networks want them

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            ValueError: names the value that is impossible.
        """
        if (
            len(self.hidden_sizes) != len(self.depths)
            or min((self.embedding_size, *self.hidden_sizes, *self.depths)) < 1
        ):
            raise ValueError(
                f"extractor needs as many hidden_sizes as depths, all at least 1, got embedding_size "
                f"{self.embedding_size}, hidden_sizes {self.hidden_sizes}, depths {self.depths}"
            )
        for name, known in (("layer_type", LAYER_TYPES), ("pixels", PIXELS)):
            if getattr(self, name) not in known:
                raise ValueError(f"extractor.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def width(self) -> int:
        """d."""
        return self.hidden_sizes[-1]


class Features(NamedTuple):
    """What a network reads of B studies."""

    values: Tensor  # (B, n, d); with several views (B, W * n, d)
    present: Tensor | None  # (B, W * n) bool, False where a view is missing; None: all are there


class VisualExtractor(nn.Module):
    """Pictures in [-1, 1] to patch features."""

    def __init__(self, settings: ExtractorSettings) -> None:
        from transformers import ResNetConfig, ResNetModel

        super().__init__()
        self.settings = settings
        config = ResNetConfig(
            embedding_size=settings.embedding_size, hidden_sizes=list(settings.hidden_sizes),
            depths=list(settings.depths), layer_type=settings.layer_type,
        )  # fmt: skip
        self.model: nn.Module = ResNetModel(config)

    def _scaled(self, images: Tensor) -> Tensor:
        if self.settings.pixels == "unit":
            return images
        mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return ((images + 1) / 2 - mean) / std

    def patches(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) in [-1, 1] -> (N, n, d), patches in raster order."""
        found: Tensor = self.model(self._scaled(images)).last_hidden_state
        return found.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor, present: Tensor | None = None) -> Features:
        """Features of pictures.

        Args:
            images: (B, 3, S, S) or (B, W, 3, S, S), in [-1, 1].
            present: (B, W) bool, which views there are; None: all. What stands in the place of others is not looked at,
                nor does it enter the statistics of BatchNorm.

        Raises:
            ValueError: other dimensions, or a study without any view.
        """
        if images.dim() == 4 and present is None:
            return Features(self.patches(images), None)
        if images.dim() != 5:
            raise ValueError(f"the extractor takes (B, 3, S, S) or, with views, (B, W, 3, S, S), got {images.shape}")
        if present is None:
            return Features(self.patches(images.flatten(0, 1)).reshape(len(images), -1, self.settings.width), None)
        if not bool(present.any(1).all()):
            raise ValueError(f"studies {(~present.any(1)).nonzero().flatten().tolist()} of the batch have no picture")
        found = self.patches(images[present])
        values = found.new_zeros(*present.shape, *found.shape[1:])
        values[present] = found
        return Features(values.flatten(1, 2), present.repeat_interleave(found.shape[1], 1))


def save_extractor(extractor: VisualExtractor, folder: Path) -> None:
    """Write config.json and model.safetensors, which `load_extractor` and `transformers.ResNetModel` read."""
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = extractor.model
    (folder / "config.json").write_text(model.config.to_json_string())
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")


def load_extractor(extractor: VisualExtractor, folder: Path) -> None:
    """Set the weights to those of a pretrained folder: `save_extractor`'s, or a Hugging Face ResNet.

    A classifier's head is left out; counters of BatchNorm may be missing.

    Raises:
        FileNotFoundError: names the file that is missing.
        ValueError: the folder's network has other sizes than the settings, or other weights than a ResNet.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: a pretrained extractor is a folder of a ResNetModel")
    config = json.loads((folder / "config.json").read_text())
    for name in SIZES:
        own = getattr(extractor.settings, name)
        found = config.get(name)
        if (tuple(found) if isinstance(found, list) else found) != own:
            raise ValueError(
                f"{folder}/config.json has {name} {found}, the settings say {own}: set extractor.{name} so"
            )
    weights = load_file(folder / "model.safetensors")
    state = {
        name.removeprefix("resnet."): value for name, value in weights.items() if not name.startswith("classifier.")
    }
    missing, unknown = extractor.model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise ValueError(
            f"{folder}/model.safetensors is no ResNet of these sizes: missing {missing}, unknown {unknown}"
        )
