"""Report tokenizer: a byte-level BPE trained on reports, or one that a published model brings.

Ids of a tokenizer come first; <boi> and <eoi> (begin and end of image), and <eos> where the tokenizer has no end of its
own, are added behind them, as the official code adds 32000, 32001, 32002 to LLaMA's 32000. They are added in this file
and not inside the tokenizer, so that no spelling in a report can produce them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

END_NAMES = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>")  # where a file does not name its end


class Backend(Protocol):
    """What a tokenizer library gives."""

    size: int  # ids lie in [0, size)
    special: frozenset[int]  # ids that are no text: controls, unknown, holes; the end is among them if there is one
    eos_id: int | None
    file_name: str

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special one."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids, none of them special."""

    def content(self) -> bytes:
        """The file that makes this tokenizer again."""


class TokenizersBackend:
    """A tokenizer of the `tokenizers` library (`tokenizer.json`)."""

    file_name = "tokenizer.json"

    def __init__(self, json_text: str, eos_token: str | None = None) -> None:
        """Raises ValueError if `eos_token` is given and not among the tokens."""
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(json_text)
        self.tokenizer.encode_special_tokens = True  # "</s>" in a report is six characters, not the end
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        ids = self.tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(ids.values(), default=-1) + 1
        if eos_token is not None and eos_token not in ids:
            raise ValueError(f"the end token {eos_token!r} is not among the tokenizer's {len(ids)} tokens")
        added = {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        names = [name for name in END_NAMES if ids.get(name) in added]
        self.eos_id = ids[eos_token] if eos_token is not None else ids[names[0]] if names else None
        self.special = frozenset(added | (set(range(self.size)) - set(ids.values())))

    def encode(self, text: str) -> list[int]:
        """See `Backend`."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """See `Backend`."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def content(self) -> bytes:
        """See `Backend`."""
        return bytes(self.tokenizer.to_str(), "utf-8")


class SentencePieceBackend:
    """A SentencePiece model (`tokenizer.model`), LLaMA's for one."""

    file_name = "tokenizer.model"

    def __init__(self, content: bytes) -> None:
        import sentencepiece

        self.processor: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.size = int(self.processor.get_piece_size())
        end = int(self.processor.eos_id())
        self.eos_id = end if end >= 0 else None
        is_special = (self.processor.is_control, self.processor.is_unknown, self.processor.is_unused)
        self.special = frozenset(i for i in range(self.size) if any(test(i) for test in is_special))

    def encode(self, text: str) -> list[int]:
        """See `Backend`; characters that the model does not know become its unknown token."""
        return list(self.processor.encode(text))

    def decode(self, ids: list[int]) -> str:
        """See `Backend`."""
        return str(self.processor.decode(ids))

    def content(self) -> bytes:
        """See `Backend`."""
        return bytes(self.processor.serialized_model_proto())


class TextTokenizer:
    """Texts to report ids in [0, size) and back."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.boi_id, self.eoi_id = backend.size, backend.size + 1
        self.eos_id = backend.size + 2 if backend.eos_id is None else backend.eos_id
        self.size = backend.size + (3 if backend.eos_id is None else 2)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        """Byte-level BPE with `vocab_size` ids in all (fewer if the texts hold too few pairs); deterministic.

        Raises:
            ValueError: `vocab_size` is below 259: 256 bytes and three special tokens.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if vocab_size < len(alphabet) + 3:
            raise ValueError(
                f"vocab_size must be at least {len(alphabet) + 3} (all bytes, <boi>, <eoi>, <eos>), got {vocab_size} "
                f"(params.yaml:tokenize_pairs.vocabulary)"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 3, min_frequency=2, initial_alphabet=alphabet, special_tokens=[],
            show_progress=False,
        )  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
        return cls(TokenizersBackend(tokenizer.to_str()))

    @classmethod
    def from_file(cls, path: Path) -> TextTokenizer:
        """The tokenizer in a `tokenizer.json`, a SentencePiece `.model`, or a Hugging Face folder that holds either.

        Raises:
            FileNotFoundError: neither is there.
        """
        if path.is_dir():
            for name in (TokenizersBackend.file_name, SentencePieceBackend.file_name):
                if (path / name).is_file():
                    return cls(_backend(path / name, _end_of_folder(path)))
            raise FileNotFoundError(f"{path} holds neither tokenizer.json nor tokenizer.model")
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing (params.yaml:tokenize_pairs.tokenizer)")
        return cls(_backend(path, None))

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, without EOS; `encode` cuts it where this exceeds length - 1."""
        return len(self.backend.encode(text))

    def encode(self, text: str, length: int) -> list[int]:
        """`length` ids: the tokens of the text, then EOS to the end, at least one; a longer text is cut.

        Raises:
            ValueError: length < 1.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1 (the EOS), got {length}")
        ids = self.backend.encode(text)[: length - 1]
        return ids + [self.eos_id] * (length - len(ids))

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text before the first EOS. Other special ids are left out; broken UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id lies outside [0, size).
        """
        kept: list[int] = []
        for i in (int(i) for i in ids):
            if i == self.eos_id:
                break
            if not 0 <= i < self.size:
                raise ValueError(f"report ids must lie in [0, {self.size}), got {i}: another tokenizer?")
            if i < self.backend.size and i not in self.backend.special:
                kept.append(i)
        return self.backend.decode(kept)

    def allowed(self) -> Tensor:
        """(size,) bool: ids that a sampler may emit: all text and EOS; not BOI, EOI, controls, unknown, holes."""
        out = torch.ones(self.size, dtype=torch.bool)
        out[list(self.backend.special) + [self.boi_id, self.eoi_id]] = False
        out[self.eos_id] = True
        return out

    def last_characters(self) -> tuple[str, ...]:
        """Of what each id writes, without spaces at its end; " " where it writes nothing else, "" for EOS and controls.

        A SentencePiece model writes nothing for a space alone, which stands between words nevertheless.
        """
        silent = {*self.backend.special, self.boi_id, self.eoi_id, self.eos_id}
        return tuple(
            "" if index in silent else self.backend.decode([index]).rstrip()[-1:] or " " for index in range(self.size)
        )

    def save(self, folder: Path) -> None:
        """Write `text_tokenizer.json` and the tokenizer's own file; `load` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.backend.file_name).write_bytes(self.backend.content())
        end = self.backend.eos_id
        eos_token = _token(self.backend, end) if end is not None else None
        content = {"file": self.backend.file_name, "size": self.size, "eos_id": self.eos_id, "eos_token": eos_token}
        (folder / "text_tokenizer.json").write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """The tokenizer that `save` wrote.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: the files do not belong together.
        """
        path = folder / "text_tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `dvc repro tokenize_pairs`")
        content = json.loads(path.read_text())
        loaded = cls(_backend(folder / content["file"], content["eos_token"]))
        if (loaded.size, loaded.eos_id) != (content["size"], content["eos_id"]):
            raise ValueError(
                f"{folder}: {content['file']} makes {loaded.size} ids with end {loaded.eos_id}, {path.name} says "
                f"{content['size']} and {content['eos_id']}: rerun `dvc repro tokenize_pairs`"
            )
        return loaded


def _backend(path: Path, eos_token: str | None) -> Backend:
    if path.suffix == ".json":
        return TokenizersBackend(path.read_text(encoding="utf-8"), eos_token)
    if path.suffix == ".model":
        return SentencePieceBackend(path.read_bytes())
    raise ValueError(f"{path}: a tokenizer is a .json (tokenizers) or a .model (SentencePiece) file")


def _token(backend: Backend, index: int) -> str | None:
    """Spelling of an id, where the backend needs it to find its end again."""
    return str(backend.tokenizer.id_to_token(index)) if isinstance(backend, TokenizersBackend) else None


def _end_of_folder(folder: Path) -> str | None:
    """The end token that a Hugging Face folder names: a string, or an object with `content`."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            end = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token")
            if end is not None:
                return str(end["content"] if isinstance(end, dict) else end)
    return None
