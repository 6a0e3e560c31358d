"""Words of the report writers that were published with a tokenizer: BLIP, LLaVA-Rad, BLLM.

Either a byte-level BPE is trained on the training texts (small worlds), or the tokenizer of a released checkpoint is
read from its Hugging Face folder. Both come from medim/tokenizers/text.py, whose round trip is exact; BERT's, which
BLIP reads, lower-cases and puts spaces around hyphens and colons, as the released BLIP does.

    tokenizer                 begin                    end         padding    ids
    trained                   added                    added       added      all of it
    BERT ([SEP], [PAD])       [DEC], added behind      [SEP]       [PAD]      those of BERT, [DEC], [ENC] (30,524)
    one with an end of its    its own, by BEGINS;      its own     its end    its own
    own (LLaMA: </s>)         else added

Texts are not cut unless the settings say so: a text that does not fit is an error that names it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medim.tokenizers.text import Backend, SentencePieceBackend, TextTokenizer, TokenizersBackend

BEGINS = ("<s>", "<bos>", "<|begin_of_text|>")
BERT_END, BERT_PADDING, BLIP_BEGIN = "[SEP]", "[PAD]", "[DEC]"
BLIP_ADDED = 2  # [DEC] and [ENC], behind BERT's words (salesforce/BLIP models/blip.py)


@dataclass(frozen=True)
class WordSettings:
    """The values stand in params.yaml."""

    tokenizer: str | None  # Hugging Face folder of a released checkpoint; null: a BPE of the training texts
    vocabulary: int  # ids of the trained one at most
    max_tokens: int  # of a text with its end, in training and in answers
    cut: bool  # cut longer training texts (false: an error names the longest)

    def __post_init__(self) -> None:
        """Check the length.

        Raises:
            ValueError: names the setting and its value.
        """
        if self.max_tokens < 2:
            raise ValueError(f"words.max_tokens must be at least 2 (a word and the end), got {self.max_tokens}")


class PublishedWords:
    """Texts to ids in [0, size) and back."""

    def __init__(self, tokenizer: TextTokenizer, max_tokens: int, cut: bool) -> None:
        self.tokenizer, self.max_tokens, self.cut = tokenizer, max_tokens, cut
        backend = tokenizer.backend
        separator = named_id(backend, BERT_END)
        if separator is not None:
            own = named_id(backend, BLIP_BEGIN)
            self.begin = backend.size if own is None else own
            self.end, self.padding = separator, named_id(backend, BERT_PADDING) or 0
            self.size = max(backend.size, self.begin + BLIP_ADDED)
        elif backend.eos_id is not None:
            begins = [i for i in (named_id(backend, name) for name in BEGINS) if i is not None]
            self.begin, self.end, self.padding = (*begins, tokenizer.boi_id)[0], backend.eos_id, backend.eos_id
            self.size = backend.size if begins else tokenizer.size
        else:
            self.begin, self.padding, self.end = tokenizer.boi_id, tokenizer.eoi_id, tokenizer.eos_id
            self.size = tokenizer.size

    @classmethod
    def build(cls, settings: WordSettings, texts: Sequence[str]) -> PublishedWords:
        """The words of a training, held to its texts.

        Raises:
            ValueError: a text does not fit and `cut` is false; names the longest.
            FileNotFoundError: see `TextTokenizer.from_file`.
        """
        if settings.tokenizer is None:
            tokenizer = TextTokenizer.train(texts, settings.vocabulary)
        else:
            tokenizer = TextTokenizer.from_file(Path(settings.tokenizer))
        words = cls(tokenizer, settings.max_tokens, settings.cut)
        words.check(texts)
        return words

    @classmethod
    def of_prior(cls, config: Mapping[str, Any], settings: WordSettings, texts: Sequence[str]) -> PublishedWords:
        """The words of a pretraining, by their `config`, with the lengths of `settings`, held to a training's texts.

        Raises:
            ValueError: see `check`.
        """
        words = cls(cls.of_config(config).tokenizer, settings.max_tokens, settings.cut)
        words.check(texts)
        return words

    def check(self, texts: Iterable[str]) -> int:
        """The number of texts that are cut, which is printed.

        Raises:
            ValueError: one would have to be cut and `cut` is false; names the longest.
        """
        lengths = {text: self.tokenizer.num_tokens(text) + 1 for text in dict.fromkeys(texts)}
        long = [text for text, length in lengths.items() if length > self.max_tokens]
        if long and not self.cut:
            raise self._too_long(max(long, key=lambda text: lengths[text]), len(long))
        if self.cut:
            print(f"{len(long)} of {len(lengths)} training texts are cut to {self.max_tokens} tokens", flush=True)
        return len(long)

    def _too_long(self, text: str, number: int) -> ValueError:
        return ValueError(
            f"{number} texts have more tokens than words.max_tokens, {self.max_tokens}; the longest has "
            f"{self.tokenizer.num_tokens(text) + 1} with its end: {text[:80]!r}…; raise max_tokens or set cut: true "
            f"(params.yaml:train_baseline.settings)"
        )

    def pieces(self, text: str) -> list[int]:
        """Ids of a text without begin and end."""
        return self.tokenizer.backend.encode(text)

    def encode(self, texts: Sequence[str], whole: bool = False) -> list[list[int]]:
        """Ids of each text with the end; `whole`: however long it is.

        Raises:
            ValueError: a text does not fit and `cut` is false.
        """
        found = [self.pieces(text) for text in texts]
        if whole:
            return [[*ids, self.end] for ids in found]
        for text, ids in zip(texts, found, strict=True):
            if len(ids) >= self.max_tokens and not self.cut:
                raise self._too_long(text, 1)
        return [[*ids[: self.max_tokens - 1], self.end] for ids in found]

    def batch(self, texts: Sequence[str], whole: bool = False) -> tuple[Tensor, Tensor]:
        """Ids (B, L) with begin and end, padded on the right, and which of them are not padding (B, L) bool."""
        rows = [torch.tensor([self.begin, *ids]) for ids in self.encode(texts, whole)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def decode(self, ids: Sequence[int]) -> str:
        """The text before the first end; ids that are no text are left out."""
        backend = self.tokenizer.backend
        kept = list(ids[: list(ids).index(self.end)] if self.end in ids else ids)
        return backend.decode([i for i in kept if i < backend.size and i not in backend.special])

    def config(self) -> dict[str, Any]:
        """What `of_config` needs, as JSON."""
        backend = self.tokenizer.backend
        text = backend.file_name == TokenizersBackend.file_name
        content = backend.content()
        return {
            "file": backend.file_name, "content": content.decode() if text else base64.b64encode(content).decode(),
            "end": _spelled(backend, backend.eos_id), "max_tokens": self.max_tokens, "cut": self.cut,
        }  # fmt: skip

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> PublishedWords:
        """The inverse of `config`."""
        backend: Backend
        if config["file"] == TokenizersBackend.file_name:
            backend = TokenizersBackend(config["content"], config["end"])
        else:
            backend = SentencePieceBackend(base64.b64decode(config["content"]))
        return cls(TextTokenizer(backend), config["max_tokens"], config["cut"])


def named_id(backend: Backend, name: str) -> int | None:
    """The id of a token by its spelling, if there is one."""
    if isinstance(backend, TokenizersBackend):
        found: int | None = backend.tokenizer.token_to_id(name)
        return found
    if isinstance(backend, SentencePieceBackend):
        index = int(backend.processor.piece_to_id(name))
        return index if backend.processor.id_to_piece(index) == name else None
    raise TypeError(f"no list of tokens for a {type(backend).__name__}")


def _spelled(backend: Backend, index: int | None) -> str | None:
    if index is None or not isinstance(backend, TokenizersBackend):
        return None
    return str(backend.tokenizer.id_to_token(index))
