import pytest
import torch
from new_towers import build_tower
from plain_vit import PlainViT

from medim.baselines.picture_encoders import KINDS
from medim.baselines.tower_names import from_timm, resized_positions

SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
         "image_size": 12, "patch_size": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scaled", [False, True])
def test_a_plain_transformer_and_each_kind_are_one_network(kind, scaled):
    torch.manual_seed(0)
    plain, tower = PlainViT(24, 40, 3, 4, 12, 4, scaled), build_tower(kind, SIZES)
    tower.load_state_dict(from_timm(kind, plain.state_dict()))
    pixels = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        states, normed = plain(pixels)
        ours = tower.eval()(pixels, output_hidden_states=True)
    torch.testing.assert_close(ours.last_hidden_state, normed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.hidden_states[-2], states[-2], rtol=1e-4, atol=1e-5)


def test_foreign_names_are_named():
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.rel_pos\.weight' is no weight"):
        from_timm("vit", {"blocks.0.attn.rel_pos.weight": torch.zeros(1)})


def test_positions_of_another_size():
    positions = torch.randn(1, 10, 5)
    assert resized_positions(positions, 9) is positions
    larger = resized_positions(positions, 36)
    assert larger.shape == (1, 37, 5) and torch.equal(larger[:, 0], positions[:, 0])
    flat = resized_positions(torch.ones(1, 10, 5), 16)
    torch.testing.assert_close(flat, torch.ones(1, 17, 5))
