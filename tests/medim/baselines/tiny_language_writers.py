"""Six pairs of two domains, three captioned pictures, tokenizers of the published kinds, parts of small settings."""

import json
from pathlib import Path

import numpy as np
import torch

from medim.baselines.base import TrainInputs
from medim.baselines.published_words import PublishedWords, WordSettings
from medim.pairs import Pair, encode_png, load_images, write_pairs
from medim.tokenizers.vqgan import to_unit

SIZE = 16
REPORTS = {
    "cxr": ("chest x-ray", ["Normal.", "Fluid, 2.5 cm.", "A nodule."]),
    "path": ("pathology", ["Glands.", "Mitoses.", "Tumour cells."]),
}
CAPTIONS = {"drawings": ("drawing", ["A disc.", "Two discs.", "A wave, 7 px."])}  # what is pretrained on
OPTIM = {
    "steps": 60, "batch_size": 4, "accumulate": 1, "lr": 7e-3, "warmup": 5, "restarts": 1, "weight_decay": 0.0,
    "beta1": 0.9, "beta2": 0.99, "clip": 1.0, "ema": 0.0, "precision": "fp32", "checkpoint_every": 1000,
    "validate_every": 0, "log_every": 1000,
}  # fmt: skip
WORDS = {"tokenizer": None, "vocabulary": 300, "max_tokens": 24, "cut": False}
# 0.02 for new weights suits widths of hundreds
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": SIZE, "patch_size": 8, "layer_norm_eps": 1e-6, "initializer_range": 0.15}  # fmt: skip
LANGUAGE = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128}  # fmt: skip
GREEDY = {"method": "greedy", "beams": 1, "top_p": 1.0, "temperature": 1.0}
NUCLEUS = {"method": "nucleus", "beams": 1, "top_p": 0.9, "temperature": 1.0}


def pair(dataset: str, number: int) -> Pair:
    """Each with a shade and a bright corner of its own, the corner in a colour of its domain."""
    prompt, reports = (REPORTS | CAPTIONS)[dataset]
    pixels = np.full((SIZE, SIZE, 3), 20 + 80 * number, np.uint8)
    row, column = divmod(number, 2)
    pixels[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8, [*sorted(REPORTS), *CAPTIONS].index(dataset)] = 250
    name = f"{dataset}-{number}"
    return Pair(name, name, name, dataset, "", encode_png(pixels), prompt, reports[number])


PAIRS = {name: [pair(name, number) for number in range(3)] for name in REPORTS}
DRAWINGS = [pair("drawings", number) for number in range(3)]
ALL = [one for pairs in PAIRS.values() for one in pairs]
TEXTS = [one.full_text for one in ALL]


def images(pairs=ALL):
    return to_unit(torch.from_numpy(load_images(pairs)))


def words(**changes):
    return PublishedWords.build(WordSettings(**{**WORDS, **changes}), TEXTS)


def inputs(folder: Path, settings, on_log=lambda *_: None, number=3, **more) -> TrainInputs:
    """The first `number` pairs of each domain, to be trained on and validated with, and as many drawings beside."""
    files = {}
    for name, pairs in (PAIRS | {"drawings": DRAWINGS}).items():
        path = folder / f"{name}.parquet"
        if not path.is_file():
            write_pairs(path, pairs[:number])
        files[name] = {"train": path, "val": path}
    return TrainInputs(files, tuple(PAIRS), settings, 0, folder / "work", folder / "out", on_log, **more)


def tokenizer_folder(folder: Path, kind: str, size: int) -> Path:
    """A tokenizer.json with `size` words of the kind of BERT or of LLaMA, at the released ids of their specials."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = {"bert": {"[PAD]": 0, "[UNK]": 100, "[SEP]": 102}, "llama": {"<unk>": 0, "<s>": 1, "</s>": 2}}[kind]
    real = ["the", "heart", "is", "normal", ".", ":", "chest", "x", "-", "ray"]
    free = [i for i in range(size) if i not in special.values()]
    vocabulary = special | {word: i for word, i in zip(real, free, strict=False)}
    vocabulary |= {f"unused{i}": i for i in free[len(real) :]}
    unknown = "[UNK]" if kind == "bert" else "<unk>"
    if kind == "bert":
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    else:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"} if kind == "llama" else {}))
    return folder


def published_words(folder: Path, kind: str, size: int, max_tokens: int = 100) -> PublishedWords:
    settings = WordSettings(str(tokenizer_folder(folder, kind, size)), 0, max_tokens, False)
    return PublishedWords.build(settings, [])


def millions(module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6
