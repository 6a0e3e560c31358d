"""The VQGAN against transformers' parts, the published checkpoint's names and shapes, and its own files."""

import math
import re

import pytest
import torch
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from medim.tokenizers.codebook import CodebookSettings, build_codebook
from medim.tokenizers.vqgan import (
    VQGAN,
    VQGANConfig,
    chameleon_config,
    load_chameleon_vqgan,
    load_vqgan,
    save_vqgan,
    taming_state,
)

TINY = VQGANConfig(
    codebook_size=32, embed_dim=8, z_channels=16, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1, norm_groups=32
)
NARROW = VQGANConfig(codebook_size=16, embed_dim=4, z_channels=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
CHAMELEON_YAML = {
    "model": {
        "params": {
            "embed_dim": 256,
            "n_embed": 8192,
            "ddconfig": {
                "double_z": False, "z_channels": 256, "resolution": 512, "in_channels": 3, "out_ch": 3, "ch": 128,
                "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
            },
        }
    }
}  # fmt: skip


def yaml_of(config):
    dd = {"z_channels": config.z_channels, "ch": config.ch, "ch_mult": list(config.ch_mult)}
    dd["num_res_blocks"] = config.num_res_blocks
    params = {"embed_dim": config.embed_dim, "n_embed": config.codebook_size, "ddconfig": dd}
    return {"model": {"params": params}}


def trained(config, seed=0):
    torch.manual_seed(seed)
    model = VQGAN(config).eval()
    for parameter in model.parameters():  # no branch at zero, no two codes alike
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def hf_config(cls, config):
    return cls(
        embed_dim=config.embed_dim, num_embeddings=config.codebook_size, latent_channels=config.z_channels,
        base_channels=config.ch, channel_multiplier=list(config.ch_mult), num_res_blocks=config.num_res_blocks,
        attn_resolutions=[],
    )  # fmt: skip


def hf_decoder(config):
    decoder = JanusVQVAEDecoder(hf_config(JanusVQVAEConfig, config))
    for level in decoder.up:
        level.attn = torch.nn.ModuleList()  # Janus attends at the lowest level, taming with attn_resolutions [] not
    return decoder.eval()


def reversed_up(state, levels):
    """Janus numbers `up` in the order of use, taming by resolution."""
    return {re.sub(r"^up\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", key): v for key, v in state.items()}


def test_equals_the_parts_of_transformers():
    model = trained(TINY)
    reference = ChameleonVQVAE(hf_config(ChameleonVQVAEConfig, TINY)).eval()
    decoder = hf_decoder(TINY)
    decoder.load_state_dict(reversed_up(model.decoder.state_dict(), 3))
    missing, unexpected = reference.load_state_dict(model.state_dict(), strict=False)
    assert not missing and all(key.startswith(("decoder.", "post_quant")) or "position" in key for key in unexpected)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        z = reference.quant_conv(reference.encoder(images))
        z_q, loss, codes = reference.quantize(z)
        expected = decoder(reference.post_quant_conv(z_q))
        torch.testing.assert_close(model.latents(images), z, atol=1e-5, rtol=1e-5)
        result = model(images)
    assert torch.equal(result.codes, codes.view(2, -1))
    assert torch.equal(model.encode(images), codes.view(2, -1))
    torch.testing.assert_close(result.images, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.loss, loss)
    torch.testing.assert_close(model.decode(result.codes), expected.clamp(-1, 1), atol=1e-5, rtol=1e-5)


def conv(name, out, inp, kernel):
    return {f"{name}.weight": (out, inp, kernel, kernel), f"{name}.bias": (out,)}


def norm(name, ch):
    return {f"{name}.weight": (ch,), f"{name}.bias": (ch,)}


def res(name, inp, out):
    shapes = norm(f"{name}.norm1", inp) | conv(f"{name}.conv1", out, inp, 3)
    shapes |= norm(f"{name}.norm2", out) | conv(f"{name}.conv2", out, out, 3)
    return shapes | (conv(f"{name}.nin_shortcut", out, inp, 1) if inp != out else {})


def middle(name, ch):
    shapes = res(f"{name}.block_1", ch, ch) | res(f"{name}.block_2", ch, ch) | norm(f"{name}.attn_1.norm", ch)
    for part in ("q", "k", "v", "proj_out"):
        shapes |= conv(f"{name}.attn_1.{part}", ch, ch, 1)
    return shapes


def taming_shapes(c):
    """Names and shapes of taming's VQModel written down from its Encoder and Decoder, independently of our modules."""
    widths = [c.ch * mult for mult in c.ch_mult]
    top, last = len(widths) - 1, widths[-1]
    shapes = conv("encoder.conv_in", c.ch, 3, 3)
    width = c.ch
    for i, out in enumerate(widths):
        for block in range(c.num_res_blocks):
            shapes |= res(f"encoder.down.{i}.block.{block}", width, out)
            width = out
        shapes |= conv(f"encoder.down.{i}.downsample.conv", out, out, 3) if i != top else {}
    shapes |= middle("encoder.mid", last) | norm("encoder.norm_out", last)
    shapes |= conv("encoder.conv_out", c.z_channels, last, 3)
    shapes |= conv("decoder.conv_in", last, c.z_channels, 3) | middle("decoder.mid", last)
    for i in reversed(range(len(widths))):
        for block in range(c.num_res_blocks + 1):
            shapes |= res(f"decoder.up.{i}.block.{block}", width, widths[i])
            width = widths[i]
        shapes |= conv(f"decoder.up.{i}.upsample.conv", width, width, 3) if i != 0 else {}
    shapes |= norm("decoder.norm_out", width) | conv("decoder.conv_out", 3, width, 3)
    shapes |= {"quantize.embedding.weight": (c.codebook_size, c.embed_dim)}
    shapes |= conv("quant_conv", c.embed_dim, c.z_channels, 1)
    return shapes | conv("post_quant_conv", c.z_channels, c.embed_dim, 1)


def test_published_network_has_every_name_and_shape_of_the_checkpoint():
    config = chameleon_config(CHAMELEON_YAML)
    with torch.device("meta"):
        model = VQGAN(config)
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert ours == taming_shapes(config)
    assert len(ours) == 293
    assert (config.factor, config.codebook_size) == (16, 8192)


def test_published_checkpoint_loads_numerically(tmp_path):
    model = trained(TINY)
    state = model.state_dict() | {"loss.perceptual_loss.scaling_layer.shift": torch.zeros(1)}
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    loaded = load_chameleon_vqgan(yaml_of(TINY), tmp_path / "vqgan.ckpt")
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(images), model.encode(images))
    assert torch.equal(loaded.decode(loaded.encode(images)), model.decode(model.encode(images)))


def test_checkpoint_with_a_missing_weight_is_an_error(tmp_path):
    state = trained(TINY).state_dict()
    del state["decoder.conv_out.bias"]
    torch.save({"state_dict": state}, tmp_path / "vqgan.ckpt")
    with pytest.raises(RuntimeError, match=r"decoder\.conv_out\.bias"):
        load_chameleon_vqgan(yaml_of(TINY), tmp_path / "vqgan.ckpt")


class Foreign:
    """Something that only a pickle can hold."""


def test_checkpoint_with_objects_is_refused(tmp_path):
    torch.save({"state_dict": trained(NARROW).state_dict(), "callbacks": Foreign()}, tmp_path / "vqgan.ckpt")
    with pytest.raises(ValueError, match="Python objects besides tensors"):
        load_chameleon_vqgan(yaml_of(NARROW), tmp_path / "vqgan.ckpt")


def test_taming_state_refuses_other_checkpoints():
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight"):
        taming_state({"state_dict": {"head.weight": torch.zeros(1)}})


@pytest.mark.parametrize(("key", "value"), [("attn_resolutions", [16]), ("double_z", True), ("dropout", 0.1)])
def test_configuration_that_we_have_not_is_refused(key, value):
    yaml = yaml_of(TINY)
    yaml["model"]["params"]["ddconfig"][key] = value
    with pytest.raises(ValueError, match=f"ddconfig.{key}"):
        chameleon_config(yaml)


def test_configuration_with_a_missing_key_names_it():
    with pytest.raises(ValueError, match="'model'"):
        chameleon_config({})


@pytest.mark.parametrize("kind", ["ema", "learned"])
def test_saved_network_encodes_and_decodes_the_same(tmp_path, kind):
    torch.manual_seed(3)
    settings = CodebookSettings(kind, 0.25, 0.9, 0.1, 0, 1)
    model = VQGAN(NARROW, build_codebook(16, 4, settings)).eval()
    save_vqgan(model, tmp_path)
    loaded = load_vqgan(tmp_path)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    codes = model.encode(images)
    assert torch.equal(loaded.encode(images), codes)
    assert torch.equal(loaded.decode(codes), model.decode(codes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_load_names_the_stage_that_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro train_vqgan"):
        load_vqgan(tmp_path)


@pytest.mark.parametrize("shape", [(1, 3, 9, 8), (1, 1, 8, 8), (3, 8, 8)])
def test_wrong_pictures_are_refused(shape):
    with pytest.raises(ValueError, match="multiple of 2"):
        trained(NARROW).encode(torch.zeros(shape))


def test_wrong_codes_are_refused():
    with pytest.raises(ValueError, match="square grid, got 5"):
        trained(NARROW).decode(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[0, 16\), got \[16, 16\]"):
        trained(NARROW).decode(torch.full((1, 4), 16))


def test_width_that_the_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of norm_groups"):
        VQGAN(VQGANConfig(16, 4, 8, 12, (1, 2), 1, 8))


def test_all_parts_get_gradients():
    model = VQGAN(NARROW).train()
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    result = model(images)
    ((result.images - images).abs().mean() + result.loss).backward()
    assert all(p.grad is not None and math.isfinite(float(p.grad.abs().sum())) for p in model.parameters())
