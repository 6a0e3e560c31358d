import pytest
import torch
from new_towers import build_tower
from torch.nn.functional import interpolate

from medim.baselines.picture_encoders import CLIP_MEAN, CLIP_STD, KINDS, to_tower, tower_config

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 12, "patch_size": 4, "layer_norm_eps": 1e-6}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_new_towers_see_their_pictures(kind):
    torch.manual_seed(0)
    tower = build_tower(kind, SIZES).eval()
    matrices = [value for value in tower.parameters() if value.dim() > 1]
    assert all(0.01 < float(value.detach().std()) < 0.03 for value in matrices)
    first, second = (tower(torch.full((1, 3, 12, 12), value)).last_hidden_state for value in (-1.0, 1.0))
    assert float((first - second).detach().abs().mean()) > 0.01


def test_pixels_are_those_that_clip_saw():
    config = tower_config("vit", SIZES)
    pictures = torch.rand(2, 3, 12, 12) * 2 - 1
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(to_tower(pictures, config) * std + mean, (pictures + 1) / 2)
    resized = to_tower(torch.rand(1, 3, 24, 24) * 2 - 1, config)
    assert resized.shape == (1, 3, 12, 12)
    flat = to_tower(torch.full((1, 3, 5, 5), 1.0), config)
    torch.testing.assert_close(flat * std + mean, torch.ones(1, 3, 12, 12))
    smooth = interpolate(torch.full((1, 3, 6, 6), 0.25), (12, 12), mode="bicubic")
    torch.testing.assert_close(to_tower(torch.full((1, 3, 6, 6), -0.5), config) * std + mean, smooth)


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match="'resnet'"):
        tower_config("resnet", SIZES)
