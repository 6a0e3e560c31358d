"""What LLaVA-Rad and BLLM share as report writers: words, teacher forcing, what stands still, the start's weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from transformers import LlamaConfig

from medim.baselines.lora import LoraSettings, add_lora, train_only
from medim.baselines.method_settings import read_settings
from medim.baselines.pretraining import WriterPretraining
from medim.baselines.prompted_decoder import PromptedDecoder
from medim.baselines.published_words import PublishedWords
from medim.baselines.report_writer import ReportWriter
from medim.baselines.writer_prior import Prior

LANGUAGE = "language"


def llama_config(sizes: Mapping[str, Any], words: PublishedWords) -> LlamaConfig:
    """`sizes` as LlamaConfig takes them, with the words' ids; no padding id, whose embedding would never learn."""
    ids = {"vocab_size": words.size, "bos_token_id": words.begin, "eos_token_id": words.end, "pad_token_id": None}
    return LlamaConfig(**sizes, **ids)


def split_template(template: str, marks: Sequence[str]) -> list[str]:
    """The pieces of a prompt around its marks, in their order.

    Raises:
        ValueError: a mark does not stand there exactly once, or they stand in another order.
    """
    pieces, rest = [], template
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found or template.count(mark) != 1:
            raise ValueError(f"a prompt must hold {', '.join(marks)} once each, in this order, got {template!r}")
        pieces.append(before)
    return [*pieces, rest]


class PromptedWriter(ReportWriter):
    """A report writer whose language model goes on from words and a picture."""

    MOVING = (LANGUAGE,)  # its only dropout is LoRA's
    SIZES: ClassVar[type]  # dataclass of the network's sizes, which has a field `lora`
    BUILT: ClassVar[tuple[str, ...]]  # fields of it that say which weights there are; LoRA's come on top

    def __init__(self, sizes: Any, words: PublishedWords) -> None:
        """`sizes`: of the class SIZES."""
        super().__init__()
        self.sizes, self.words = sizes, words

    @property
    @abstractmethod
    def decoder(self) -> PromptedDecoder:
        """The language model behind the prompts."""

    @abstractmethod
    def prompts(self, images: Tensor) -> list[Tensor]:
        """What stands before the report of each picture of (B, 3, S, S)."""

    def assembled(self, pieces: Sequence[Sequence[int]], filled: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Prompts: the begin, the first piece's words, the first filling, the second piece's words, and so on.

        Args:
            pieces: ids, one more than a row has fillings.
            filled: for each row its fillings (P, D).
        """
        embedded = [self.decoder.embed(ids) for ids in [[self.words.begin, *pieces[0]], *pieces[1:]]]
        return [
            torch.cat([embedded[0], *(part for pair in zip(row, embedded[1:], strict=True) for part in pair)])
            for row in filled
        ]  # fmt: skip

    @property
    def token_kinds(self) -> int:
        """See `ReportWriter`."""
        return self.words.size

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `ReportWriter`."""
        return self.words.batch(texts, whole=True)

    def nats(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `ReportWriter`."""
        found = self.decoder.nats(self.prompts(images), self.words.encode(texts, whole=True))
        return found.sum(), torch.tensor(len(found))

    def config(self) -> dict[str, Any]:
        """See `ReportWriter`."""
        return {"network": asdict(self.sizes), "words": self.words.config()}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Self:
        """The inverse of `config`, untrained."""
        sizes: Any = read_settings(cls.SIZES, config["network"], "config.json:writer.network")
        writer = cls(sizes, PublishedWords.of_config(config["words"]))
        writer.adapt(writer.sizes.lora)
        return writer

    def start_from_prior(self, prior: Prior, pretraining: WriterPretraining | None) -> dict[str, bool]:
        """Fill the network, without LoRA as yet, in place; part -> whether it has pretrained weights.

        Args:
            prior: of `pretraining`.
            pretraining: a contrastive one has trained the parts SEEING only; everything else keeps first weights of its
                own, which differ from seed to seed.

        Raises:
            ValueError: see `Prior.check_sizes` and `Prior.fill`.
        """
        prior.check_sizes(self.config(), [f"network.{name}" for name in self.BUILT])
        contrastive = pretraining is not None and pretraining.contrast is not None
        trained = [name for part in self.SEEING for name in self.PARTS[part]]
        own = {
            name: value.clone()
            for name, value in self.state_dict().items()
            if contrastive and not any(name == one or name.startswith(f"{one}.") for one in trained)
        }
        prior.fill(self)
        self.load_state_dict(own, strict=False)
        return {part: part in self.SEEING or not contrastive for part in self.PARTS}

    def adapt(self, lora: LoraSettings | None) -> None:
        """Add LoRA to the language model, of which nothing else learns then; nothing where there is none."""
        if lora is not None:
            add_lora(self.decoder.decoder, lora)
            for name in self.PARTS[LANGUAGE]:
                train_only(self.get_submodule(name), [])


def existing(path: str | None) -> Path | None:
    """A path of params.yaml.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if path is not None and not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing (params.yaml:train_baseline.settings, `start`)")
    return None if path is None else Path(path)
