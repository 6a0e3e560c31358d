"""VQGAN: pictures to discrete codes and back (Esser et al. 2021, arXiv:2012.09841), and its files.

Structure and parameter names are those of taming-transformers' VQModel (see vqgan_layers.py). Small widths serve the
phantoms; the paper's network, Chameleon's VQGAN, is the same code at its published widths: `load_chameleon_vqgan`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medim.tokenizers.codebook import Codebook, LearnedCodebook
from medim.tokenizers.vqgan_layers import Decoder, Encoder, init_residual


@dataclass(frozen=True)
class VQGANConfig:
    """Sizes of the network; names as in taming's configuration files."""

    codebook_size: int  # n_embed
    embed_dim: int  # of a code
    z_channels: int  # of the latents before quant_conv
    ch: int  # channels at full resolution, a multiple of `norm_groups`
    ch_mult: tuple[int, ...]  # times `ch` at each resolution; one halving less than there are entries
    num_res_blocks: int  # per resolution; the decoder has one more
    norm_groups: int  # groups of every GroupNorm; 32 in the published networks

    @property
    def factor(self) -> int:
        """Pixels a code side: 2 to the number of halvings."""
        return int(2 ** (len(self.ch_mult) - 1))


class Reconstruction(NamedTuple):
    """What a VQGAN makes of pictures (B, 3, S, S)."""

    images: Tensor  # (B, 3, S, S), not clamped
    loss: Tensor  # scalar, of the codebook
    codes: Tensor  # (B, n) int64, raster order


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float (B, 3, S, S) in [-1, 1]: x / 127.5 - 1, as in the official code.

    Contiguous, not channels-last: on the CPU the bfloat16 backward of GroupNorm takes five times as long in the latter,
    more than convolutions win by it.
    """
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_pixels(images: Tensor) -> Tensor:
    """float (B, 3, S, S) in [-1, 1] -> uint8 (B, S, S, 3), clamped and rounded (the official code truncates)."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class VQGAN(nn.Module):
    """Encoder, codebook, decoder.

    Args:
        config: sizes.
        codebook: the codebook; without one a `LearnedCodebook`, which is what a trained network needs.

    Raises:
        ValueError: `ch` is no multiple of `norm_groups`.
    """

    def __init__(self, config: VQGANConfig, codebook: Codebook | None = None) -> None:
        super().__init__()
        if config.ch % config.norm_groups:
            raise ValueError(
                f"vqgan: ch ({config.ch}) must be a multiple of norm_groups ({config.norm_groups}): each GroupNorm "
                f"cuts its channels into that many groups (params.yaml:train_vqgan.training.model)"
            )
        self.config = config
        self.factor, self.codebook_size = config.factor, config.codebook_size
        widths = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels, config.norm_groups)
        self.encoder, self.decoder = Encoder(*widths), Decoder(*widths)
        self.quantize = LearnedCodebook(config.codebook_size, config.embed_dim) if codebook is None else codebook
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        init_residual(self)

    def latents(self, images: Tensor) -> Tensor:
        """(B, embed_dim, S/f, S/f) of images (B, 3, S, S) in [-1, 1], before quantisation.

        Raises:
            ValueError: not (B, 3, H, W), or a side is no multiple of the factor.
        """
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ValueError(
                f"the VQGAN takes pictures (B, 3, S, S) with S a multiple of {self.factor}, got {tuple(images.shape)}"
            )
        return cast(Tensor, self.quant_conv(self.encoder(images)))

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstruct images (B, 3, S, S) in [-1, 1], with gradients for all parts."""
        z_q, loss, codes = self.quantize(self.latents(images))
        return Reconstruction(self.decoder(self.post_quant_conv(z_q)), loss, codes.flatten(1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Codes (B, n) int64 in raster order of images (B, 3, S, S) in [-1, 1]; n = (S / factor)²."""
        return self.quantize.encode(self.latents(images)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [-1, 1] of codes (B, n) of a square grid.

        Raises:
            ValueError: n is no square number, or a code lies outside the codebook.
        """
        side = math.isqrt(codes.shape[1])
        if side * side != codes.shape[1]:
            raise ValueError(f"decode takes the codes of a square grid, got {codes.shape[1]} codes a picture")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise ValueError(f"codes must lie in [0, {self.codebook_size}), got [{codes.min()}, {codes.max()}]")
        z_q = self.quantize.vectors(codes.view(-1, side, side))
        return cast(Tensor, self.decoder(self.post_quant_conv(z_q))).clamp(-1, 1)


def taming_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of our VQGAN in a checkpoint of taming-transformers (Chameleon's `vqgan.ckpt` is one).

    The names are ours already; what belongs to the loss (`loss.*`: discriminator, LPIPS) is left out.

    Raises:
        ValueError: there are no weights of a VQGAN in it.
    """
    state = checkpoint.get("state_dict", checkpoint)
    kept = {key: value for key, value in state.items() if not key.startswith("loss.")}
    if "quantize.embedding.weight" not in kept:
        raise ValueError(f"no VQGAN checkpoint: key quantize.embedding.weight is missing among {sorted(kept)[:5]} ...")
    return kept


def chameleon_config(yaml: Mapping[str, Any]) -> VQGANConfig:
    """Sizes from the content of a taming-transformers configuration file (Chameleon's `vqgan.yaml`).

    Raises:
        ValueError: a key is missing, or the file asks for something that this network has not (attention at other
            resolutions than the lowest, doubled latents, dropout, other than 3 channels).
    """
    try:
        params = yaml["model"]["params"]
        dd = params["ddconfig"]
        config = VQGANConfig(
            codebook_size=int(params["n_embed"]), embed_dim=int(params["embed_dim"]), z_channels=int(dd["z_channels"]),
            ch=int(dd["ch"]), ch_mult=tuple(int(m) for m in dd["ch_mult"]), num_res_blocks=int(dd["num_res_blocks"]),
            norm_groups=32,
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(f"not a VQGAN configuration: key {error} is missing") from error
    wanted = {"double_z": False, "attn_resolutions": [], "dropout": 0.0, "in_channels": 3, "out_ch": 3}
    for key, value in wanted.items():
        if dd.get(key, value) != value:
            raise ValueError(f"ddconfig.{key} must be {value} for this network, got {dd[key]!r}")
    return config


def load_chameleon_vqgan(yaml: Mapping[str, Any], checkpoint: Path) -> VQGAN:
    """The published VQGAN, in eval mode, from its configuration (as a dict) and its `.ckpt`.

    Every weight of the network must be in the file and every one in the file (but for `loss.*`) must be used; the
    official code loads with `strict=False` and would go on with random weights.

    Raises:
        ValueError: see `chameleon_config`; or the file holds more than tensors, which a checkpoint from another program
            may: it is not executed.
        RuntimeError: names or shapes differ; torch names them.
    """
    import pickle

    try:
        found = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{checkpoint} holds Python objects besides tensors, which would be run on loading. If you trust the file, "
            f"rewrite it once: torch.save({{'state_dict': torch.load(path, weights_only=False)['state_dict']}}, path)"
        ) from error
    with torch.device("meta"):
        model = VQGAN(chameleon_config(yaml))
    model.load_state_dict(taming_state(found), assign=True)
    return model.eval()


def save_vqgan(model: VQGAN, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`: the weights that encoding and decoding need, no training state."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        names = VQGAN(model.config).state_dict().keys()
    state = model.state_dict()
    save_file({name: state[name].contiguous().cpu() for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1) + "\n")


def load_vqgan(folder: Path) -> VQGAN:
    """The VQGAN that `save_vqgan` wrote, in eval mode on the CPU.

    Raises:
        FileNotFoundError: a file is missing; names the stage that writes it.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: run `dvc repro train_vqgan`")
    config = json.loads((folder / "config.json").read_text())
    model = VQGAN(VQGANConfig(**(config | {"ch_mult": tuple(config["ch_mult"])})))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
