"""Pictures to patch features."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_writers import EXTRACTOR

from medim.baselines.published_r2gen import RESNET_101
from medim.baselines.visual_extractor import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ExtractorSettings,
    VisualExtractor,
    load_extractor,
    save_extractor,
)


def extractor(settings=EXTRACTOR, seed=0):
    torch.manual_seed(seed)
    return VisualExtractor(settings).eval()


def pictures(*shape, seed=0):
    return torch.rand(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_patches_stand_in_raster_order():
    net, images = extractor(), pictures(2)
    values, present = net(images)
    assert values.shape == (2, 16, 16) and present is None
    grid = net.model(images).last_hidden_state
    torch.testing.assert_close(values[1, 4 * 1 + 3], grid[1, :, 1, 3])


def test_imagenet_scaling_is_torchvisions():
    scaled = extractor(ExtractorSettings(8, (8, 16), (1, 1), "basic", "imagenet"))
    plain = extractor()
    images = pictures(1)
    rgb = (images * 127.5 + 127.5) / 255
    by_hand = torch.stack([(rgb[:, c] - IMAGENET_MEAN[c]) / IMAGENET_STD[c] for c in range(3)], 1)
    torch.testing.assert_close(scaled(images).values, plain(by_hand).values)


def test_views_are_seen_one_after_the_other_and_absent_ones_not_at_all():
    net, images = extractor(), pictures(3, 2)
    present = torch.tensor([[True, True], [True, False], [False, True]])
    images[1, 1] = torch.nan
    values, mask = net(images, present)
    assert values.shape == (3, 32, 16)
    assert mask.tolist() == [[True] * 32, [True] * 16 + [False] * 16, [False] * 16 + [True] * 16]
    torch.testing.assert_close(values[0, 16:], net(images[:1, 1]).values[0])
    torch.testing.assert_close(values[2, 16:], net(images[2:, 1]).values[0])
    assert not values[~mask].any()
    whole = net(images[:1])
    assert whole.present is None
    torch.testing.assert_close(whole.values, values[:1])


def test_a_study_without_a_picture_is_refused():
    with pytest.raises(ValueError, match=r"studies \[1\] of the batch have no picture"):
        extractor()(pictures(2, 2), torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="takes"):
        extractor()(pictures(2), torch.ones(2, 1, dtype=torch.bool))


def test_weights_are_saved_and_loaded(tmp_path):
    first, second = extractor(seed=1), extractor(seed=2)
    first.model.embedder.embedder.normalization.running_mean += 0.3
    save_extractor(first, tmp_path)
    load_extractor(second, tmp_path)
    assert torch.equal(first(pictures(1)).values, second(pictures(1)).values)


def test_a_classifiers_folder_is_read_too(tmp_path):
    first, second = extractor(seed=1), extractor(seed=2)
    save_extractor(first, tmp_path)
    state = {f"resnet.{k}": v for k, v in load_file(tmp_path / "model.safetensors").items() if "num_batches" not in k}
    save_file(state | {"classifier.1.weight": torch.zeros(2, 16)}, tmp_path / "model.safetensors")
    load_extractor(second, tmp_path)
    assert torch.equal(first(pictures(1)).values, second(pictures(1)).values)


def test_transformers_reads_the_folder(tmp_path):
    from transformers import ResNetModel

    net = extractor()
    save_extractor(net, tmp_path)
    found = ResNetModel.from_pretrained(tmp_path).eval()(pictures(1)).last_hidden_state
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), net(pictures(1)).values)


def test_a_folder_that_does_not_fit_is_named(tmp_path):
    net = extractor()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_extractor(net, tmp_path)
    save_extractor(net, tmp_path)
    with pytest.raises(ValueError, match=r"hidden_sizes \[8, 16\], the settings say \(8, 32\)"):
        load_extractor(extractor(ExtractorSettings(8, (8, 32), (1, 1), "basic", "unit")), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("embedder.embedder.convolution.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing \['embedder.embedder.convolution.weight'\]"):
        load_extractor(net, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "resnet"


def test_impossible_sizes_are_named():
    for values in ((8, (8,), (1, 1), "basic", "unit"), (8, (8,), (0,), "basic", "unit")):
        with pytest.raises(ValueError, match="as many hidden_sizes as depths"):
            ExtractorSettings(*values)
    for values in ((8, (8,), (1,), "deep", "unit"), (8, (8,), (1,), "basic", "raw")):
        with pytest.raises(ValueError, match="must be one of"):
            ExtractorSettings(*values)


def test_the_published_network_is_resnet_101():
    with torch.device("meta"):
        net = VisualExtractor(RESNET_101)
    assert sum(p.numel() for p in net.parameters()) == 42_500_160
    assert net(torch.empty(1, 3, 224, 224, device="meta")).values.shape == (1, 49, 2048)
