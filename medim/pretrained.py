"""A pretrained decoder as the backbone's start: what files are expected and how their weights are carried over.

Three sources, told apart by what lies there:

- a folder of `medim.backbone_pretraining`: same tokenizers, every row and every block carries over;
- a local Hugging Face folder: config.json, *.safetensors and tokenizer.json or tokenizer.model (Liquid, SmolLM2, …);
- a GGUF file (extra `gguf`), see gguf_decoder.py.

The official code resizes the embedding to 40,196 rows and so reads Gemma's rows under LLaMA's ids and loses Liquid's
image rows. Here a row is copied where both tokenizers have the same token, spelled out; the code rows are copied where
the source says where they stand (`image_rows`); [MASK] gets the mean row, all others N(mean, std²) per channel, since
at the mean alone hundreds of codes would start alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from medim.backbones.mllm import DECODERS, MLLM
from medim.backbones.towers import tower_settings
from medim.gguf_decoder import read_gguf
from medim.tokenizers.text import SentencePieceBackend, TextTokenizer, TokenizersBackend

OWN_FOLDER = "medim.backbone_pretraining"  # value of config.json's key "made_by"


@dataclass(frozen=True)
class Start:
    """Where the backbone's weights come from.

    `layers`: only the first so many (official: 10 of 28); None: all. The final norm of a cut decoder belongs to another
    depth and makes the first predictions worse than uniform ones (SmolLM2, 4 of 30 layers: 23.6 nats, uniform 7.4, with
    the norm's weights set to 0.4: 8.6): `final_norm` sets them all to one value, None keeps them.
    `image_rows`: the source's row of code 0, if it knows our codes (Liquid with Chameleon's VQGAN: 256000).
    """

    source: Path
    layers: int | None
    final_norm: float | None
    image_rows: int | None


@dataclass(frozen=True)
class Beginning:
    """What a training of MeDiM starts from; None: from its seed."""

    decoder: Start | None = None
    towers: Path | None = None  # folder of medim.tower_pretraining, read where the settings have towers


@dataclass(frozen=True)
class Checkpoint:
    """A decoder at rest. `tensor(name)` reads one weight by its Hugging Face name, without the `model.` in front."""

    config: Mapping[str, Any]
    names: frozenset[str]
    tensor: Callable[[str], Tensor]
    token_ids: Mapping[str, int]  # spelled-out token -> row


def is_own(source: Path) -> bool:
    """Whether `source` is a folder of `medim.backbone_pretraining`."""
    config = source / "config.json"
    return config.is_file() and json.loads(config.read_text()).get("made_by") == OWN_FOLDER


def spelled(piece: str) -> str:
    """A token as text: the marks for a leading space of byte-level BPE and SentencePiece are spaces."""
    return piece.replace("Ġ", " ").replace("▁", " ")


def token_ids(tokenizer: TextTokenizer) -> dict[str, int]:
    """Spelled-out token -> id, without specials; of two that are spelled alike the first."""
    backend = tokenizer.backend
    if isinstance(backend, TokenizersBackend):
        pieces = {i: piece for piece, i in backend.tokenizer.get_vocab().items()}
    elif isinstance(backend, SentencePieceBackend):
        pieces = {i: str(backend.processor.id_to_piece(i)) for i in range(backend.size)}
    else:
        raise TypeError(f"no list of tokens for a {type(backend).__name__}")
    out: dict[str, int] = {}
    for i in sorted(pieces):
        if i not in backend.special:
            out.setdefault(spelled(pieces[i]), i)
    return out


def _weights(folder: Path) -> tuple[frozenset[str], Callable[[str], Tensor]]:
    """Names (without `model.`) and a reader of one weight at a time, over all safetensors files of a folder."""
    where: dict[str, tuple[Path, str]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            where |= {key.removeprefix("model."): (path, key) for key in file.keys()}  # noqa: SIM118

    def tensor(name: str) -> Tensor:
        path, key = where[name]
        with safe_open(path, "pt") as file:
            return file.get_tensor(key)

    return frozenset(where), tensor


def open_checkpoint(source: Path) -> Checkpoint:
    """A Hugging Face folder or a GGUF file.

    Raises:
        FileNotFoundError: names what is missing and what belongs there.
        ValueError: the decoder is of a kind that the backbone does not know.
    """
    if source.is_file():
        config, weights, pieces = read_gguf(source)
        ids = {spelled(piece): i for i, piece in reversed(list(enumerate(pieces)))}
        return Checkpoint(config, frozenset(weights), lambda name: weights[name](), ids)
    if not (source / "config.json").is_file() or not list(source.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{source} is no pretrained decoder: place config.json, *.safetensors and tokenizer.json (or "
            f"tokenizer.model) of a Hugging Face checkpoint there, or name a .gguf file (params.yaml:train_medim)"
        )
    config = json.loads((source / "config.json").read_text())
    if config.get("model_type") not in DECODERS:
        raise ValueError(f"{source}/config.json: model_type {config.get('model_type')!r} is not one of {DECODERS}")
    names, tensor = _weights(source)
    return Checkpoint(config, names, tensor, token_ids(TextTokenizer.from_file(source)))


def decoder_settings(start: Start) -> dict[str, Any]:
    """`BackboneSettings.decoder` of a checkpoint: its own configuration, cut to `start.layers`.

    Raises:
        ValueError: more layers are asked for than there are.
    """
    if is_own(start.source):
        own: dict[str, Any] = json.loads((start.source / "config.json").read_text())["backbone"]["decoder"]
        return own
    config = dict(open_checkpoint(start.source).config)
    depth = int(config["num_hidden_layers"])
    layers = depth if start.layers is None else start.layers
    if not 1 <= layers <= depth:
        raise ValueError(f"{start.source} has {depth} layers, asked for {layers} (params.yaml:train_medim)")
    ours = ("vocab_size", "tie_word_embeddings", "use_cache", "torch_dtype", "dtype", "architectures", "layer_types",
            "pad_token_id", "bos_token_id", "eos_token_id", "transformers_version", "_name_or_path")  # fmt: skip
    return {k: v for k, v in config.items() if k not in ours} | {"num_hidden_layers": layers}


def initialise_decoder(backbone: MLLM, tokenizer: TextTokenizer, start: Start, seed: int) -> dict[str, int]:
    """Fill the decoder (embedding, blocks, final norm) and the head in place; AdaLN and time keep their start.

    Returns:
        Counts: blocks' tensors, report rows copied and drawn, code rows copied and drawn.

    Raises:
        ValueError: a weight is missing, or of another shape (names it); or the backbone's positions are not those of
            a checkpoint.
    """
    if is_own(start.source):
        return _initialise_own(backbone, tokenizer, start.source)
    if backbone.settings.positions != "flat" or backbone.patch is not None or backbone.stem is not None:
        raise ValueError(
            f"{start.source} was trained with positions in one line and one code each: set positions: flat, "
            f"code_patch: 1 and code_stem: 0 (params.yaml:train_medim.settings.backbone)"
        )
    checkpoint = open_checkpoint(start.source)
    blocks = 0
    with torch.no_grad():
        for name, parameter in backbone.decoder.named_parameters():
            if name == "embed_tokens.weight":
                continue
            parameter.copy_(_checked(checkpoint, name, parameter.shape, start.source))
            blocks += 1
        if start.final_norm is not None:
            # Gemma's norm multiplies by 1 + weight
            offset = 1.0 if checkpoint.config["model_type"] == "gemma" else 0.0
            backbone.decoder.norm.weight.fill_(start.final_norm - offset)
    generator = torch.Generator().manual_seed(seed)
    rows = checkpoint.tensor("embed_tokens.weight")
    counts = fill_rows(backbone.decoder.embed_tokens.weight, rows, backbone, tokenizer, checkpoint, start, generator)
    if backbone.head is not None:
        rows = checkpoint.tensor("lm_head.weight") if "lm_head.weight" in checkpoint.names else rows
        fill_rows(backbone.head, rows, backbone, tokenizer, checkpoint, start, generator)
    return {"block_tensors": blocks} | counts


def _checked(checkpoint: Checkpoint, name: str, shape: torch.Size, source: Path) -> Tensor:
    if name not in checkpoint.names:
        raise ValueError(f"{source} lacks the weight model.{name}: is it complete, and of the family in its config?")
    tensor = checkpoint.tensor(name)
    if tensor.shape != shape:
        raise ValueError(f"{source}: model.{name} is {tuple(tensor.shape)}, the backbone wants {tuple(shape)}")
    return tensor


@torch.no_grad()
def fill_rows(
    target: Tensor, rows: Tensor, backbone: MLLM, tokenizer: TextTokenizer, checkpoint: Checkpoint, start: Start,
    generator: torch.Generator,
) -> dict[str, int]:  # fmt: skip
    """Fill an embedding or a head (vocab.size, D) in place from the source's rows (V, D); returns counts."""
    vocab = backbone.vocab
    rows = rows.float()
    std, mean = torch.std_mean(rows, dim=0)
    drawn = mean + std * torch.randn(target.shape, generator=generator)
    drawn[vocab.mask_id] = mean
    shared = [(i, checkpoint.token_ids[s]) for s, i in token_ids(tokenizer).items() if s in checkpoint.token_ids]
    if shared:
        ours, theirs = torch.tensor(shared).unbind(1)
        drawn[ours] = rows[theirs]
    codes = 0
    if start.image_rows is not None:
        if start.image_rows + vocab.n_image > len(rows):
            raise ValueError(
                f"{start.source} has {len(rows)} rows, too few for {vocab.n_image} codes from {start.image_rows}"
            )
        drawn[vocab.image_offset :] = rows[start.image_rows : start.image_rows + vocab.n_image]
        codes = vocab.n_image
    target.copy_(drawn)
    return {
        "report_rows_copied": len(shared), "report_rows_drawn": vocab.n_text - len(shared),
        "code_rows_copied": codes, "code_rows_drawn": vocab.n_image - codes,
    }  # fmt: skip


def _initialise_own(backbone: MLLM, tokenizer: TextTokenizer, folder: Path) -> dict[str, int]:
    """Every weight of `medim.backbone_pretraining`, whose tokenizer must be this one."""
    theirs = TextTokenizer.load(folder)
    if theirs.backend.content() != tokenizer.backend.content():
        raise ValueError(f"{folder} was pretrained with another report tokenizer: rerun `dvc repro pretrain_backbone`")
    state = load_file(folder / "model.safetensors")
    wanted = dict(backbone.decoder_parameters())
    wrong = sorted(
        [name for name in wanted if name not in state and name != "head"]
        + [name for name in state if name not in wanted and name != "head"]
        + [name for name, value in state.items() if name in wanted and value.shape != wanted[name].shape]
    )
    if wrong:
        raise ValueError(
            f"{folder} does not fit the backbone at {wrong[:3]}: pretrain_backbone and train_medim must have the same "
            f"decoder, code_patch, code_stem and codebook (params.yaml), then rerun `dvc repro pretrain_backbone`"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name] if name in state else state["decoder.embed_tokens.weight"])
    return {"block_tensors": len(wanted), "report_rows_copied": backbone.vocab.n_text,
            "code_rows_copied": backbone.vocab.n_image}  # fmt: skip


def load_towers(backbone: MLLM, folder: Path) -> int:
    """Fill the towers in place with what `medim.tower_pretraining` wrote; returns the number of tensors.

    Raises:
        FileNotFoundError: names the file and the command that makes it.
        ValueError: the folder's towers are of other sizes than the backbone's, or of another vocabulary.
    """
    assert backbone.towers is not None
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder / 'config.json'} is missing: run `dvc repro pretrain_towers`")
    theirs = tower_settings(json.loads((folder / "config.json").read_text())["towers"])
    if theirs != backbone.settings.towers:
        raise ValueError(
            f"{folder} holds towers of {theirs}, params.yaml:train_medim.settings.backbone.towers are "
            f"{backbone.settings.towers}: a variant must not change their sizes; rerun `dvc repro pretrain_towers`"
        )
    state = load_file(folder / "model.safetensors")
    wanted = backbone.towers.towers.state_dict()
    wrong = sorted(name for name in {*state, *wanted} if name not in state or name not in wanted
                   or state[name].shape != wanted[name].shape)  # fmt: skip
    if wrong:
        raise ValueError(f"{folder} does not fit the backbone at {wrong[:3]}: rerun `dvc repro pretrain_towers`")
    backbone.towers.towers.load_state_dict(state)
    backbone.towers.copy_words()
    return len(state)
