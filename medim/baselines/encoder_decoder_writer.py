"""A report writer of a residual network, an encoder-decoder and a vocabulary of words: what R2Gen and R2GenCMN share.

Learned is the mean negative log p of words and end, as in cuhksz-nlp/R2Gen, modules/loss.py. Reports are written by
beam search, so a seed changes nothing.

Letters: B pairs, S pixels a side, T words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from medim.baselines.base import Trained, TrainInputs
from medim.baselines.beam_search import beam_search
from medim.baselines.method_settings import read_settings
from medim.baselines.pretraining import WriterPretraining, check_one_start
from medim.baselines.report_decoder import EncoderDecoder
from medim.baselines.report_words import EDGE, ReportWords, WordSettings, check_lengths
from medim.baselines.report_writer import ReportWriter, WriterSystem, load_writer
from medim.baselines.visual_extractor import ExtractorSettings, VisualExtractor, load_extractor
from medim.baselines.writer_prior import Prior
from medim.baselines.writer_training import WriterRecipe, train_writer
from medim.training import Optimisation

MakeNetwork = Callable[[int, int], EncoderDecoder]  # (features of a patch, word ids) -> network
NetworkKind = Callable[[Any, int, int], EncoderDecoder]  # (sizes, features of a patch, word ids) -> network


@dataclass(frozen=True)
class EncoderDecoderSettings:
    """params.yaml:train_baseline.settings.<method>; a method says of what kind its `network` is."""

    extractor: ExtractorSettings
    network: Any  # sizes
    words: WordSettings
    beams: int  # of the beam search; published: 3
    val_pairs: int  # validation pairs a dataset at most
    start: str | None  # Hugging Face folder of a released ResNet (published: ResNet-101 of ImageNet)
    pretraining: WriterPretraining | None  # a first training; the extractor's weights are kept
    frozen: tuple[str, ...]  # parts that keep these weights: extractor; published: none
    optim: Optimisation

    def __post_init__(self) -> None:
        """See `check_one_start`."""
        check_one_start(self.pretraining is not None, {"start": self.start})


@dataclass(frozen=True)
class Writing:
    """How long texts may be; what a writer keeps of its settings."""

    max_length: int  # words of a text that are written, at most
    cut: bool  # whether longer training texts are cut there; else all of their words are learned
    beams: int

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the value that is impossible.
        """
        for name in ("max_length", "beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class EncoderDecoderWriter(ReportWriter):
    """Extractor, network and words."""

    PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {"extractor": ("extractor",)}
    SEEING = ("extractor",)

    def __init__(
        self, extractor: ExtractorSettings, make_network: MakeNetwork, words: ReportWords, writing: Writing
    ) -> None:
        super().__init__()
        self.extractor = VisualExtractor(extractor)
        self.network = make_network(extractor.width, words.num_ids)
        self.words, self.writing = words, writing

    def _negative_log_p(self, images: Tensor, texts: Sequence[str], most: int | None) -> tuple[Tensor, Tensor]:
        """Sum over what is learned of the texts, and how much that is; `most` as in `ReportWords.batch`."""
        ids, learned = (one.to(images.device) for one in self.words.batch(texts, most))
        logits, _ = self.network(ids[:, :-1], self.network.start(self.extractor(images)))
        nats = cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        return (nats * learned).sum(), learned.sum()

    def patches(self, images: Tensor) -> Tensor:
        """See `ReportWriter`."""
        values: Tensor = self.extractor(images).values
        return values

    @property
    def token_kinds(self) -> int:
        """See `ReportWriter`."""
        return self.words.num_ids

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `ReportWriter`; without the begin."""
        ids, there = self.words.batch(texts, None)
        return ids[:, 1:], there

    def loss(self, images: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """See `ReportWriter`; dropout is drawn from torch's seeded default."""
        total, count = self._negative_log_p(images, texts, self.writing.max_length if self.writing.cut else None)
        return total / count

    def nats(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `ReportWriter`; of whole texts, whatever their length. An unknown word counts as <unk>."""
        return self._negative_log_p(images, texts, None)

    @torch.no_grad()
    def write(self, images: Tensor, seeds: Sequence[int]) -> list[str]:
        """See `ReportWriter`."""
        state = self.network.start(self.extractor(images))
        first = torch.full((len(images),), EDGE, device=images.device)
        found = beam_search(
            self.network, state, first, end=EDGE, beams=self.writing.beams, max_length=self.writing.max_length
        )
        return [self.words.decode(one.tokens) for one in found]

    def config(self) -> dict[str, Any]:
        """See `ReportWriter`."""
        return {
            "extractor": asdict(self.extractor.settings), "network": asdict(self.network.sizes),
            "words": self.words.config(), "writing": asdict(self.writing),
        }  # fmt: skip


def new_writer(
    texts: Sequence[str], settings: EncoderDecoderSettings, make_network: MakeNetwork, method: str,
    prior: Prior | None,
) -> EncoderDecoderWriter:  # fmt: skip
    """An untrained writer.

    Args:
        texts: the training texts.
        settings: see `EncoderDecoderSettings`.
        make_network: see `MakeNetwork`.
        method: for messages.
        prior: gives the residual network its first weights, and nothing else; None: `settings.start` does, if anything.

    Raises:
        FileNotFoundError: see `load_extractor`.
        ValueError: the prior is of another residual network, or see `ReportWords.build`, `check_lengths` and
            `load_extractor`.
    """
    words = ReportWords.build(texts, settings.words.threshold, settings.words.cleaning)
    check_lengths(words, texts, settings.words, method)
    writing = Writing(settings.words.max_length, settings.words.long_texts == "cut", settings.beams)
    writer = EncoderDecoderWriter(settings.extractor, make_network, words, writing)
    if prior is not None:
        prior.check_sizes(writer.config(), ["extractor"])
        prior.fill(writer.extractor, "extractor")
    elif settings.start is not None:
        load_extractor(writer.extractor, Path(settings.start))
    return writer


def train_encoder_decoder(
    inputs: TrainInputs, kind: type[EncoderDecoderSettings], network: NetworkKind, method: str
) -> Trained:
    """Train `medim.baselines.<method>` and write its folder.

    Raises:
        FileNotFoundError, ValueError: see `read_settings`, `new_writer` and `train_writer`.
    """
    settings = read_settings(kind, inputs.settings, f"params.yaml:train_baseline.settings.{method}")

    def first(texts: Sequence[str], prior: Prior | None = None) -> EncoderDecoderWriter:
        return new_writer(texts, settings, partial(network, settings.network), method, prior)

    def build(texts: Sequence[str], prior: Prior | None) -> EncoderDecoderWriter:
        writer = first(texts, prior)
        writer.hold(settings.frozen, dict.fromkeys(writer.PARTS, prior is not None or settings.start is not None))
        return writer

    recipe = WriterRecipe(
        f"medim.baselines.{method}", settings.optim, settings.val_pairs, build, settings.pretraining, first,
        kept_whole=False, starts={"start": settings.start},
    )  # fmt: skip
    return train_writer(inputs, recipe)


def writer_of_config(config: Mapping[str, Any], make_network: MakeNetwork) -> EncoderDecoderWriter:
    """The writer of a `config`, with new weights; the network's sizes stand under "network"."""
    extractor = read_settings(ExtractorSettings, config["extractor"], "config.json:writer.extractor")
    writing = read_settings(Writing, config["writing"], "config.json:writer.writing")
    return EncoderDecoderWriter(extractor, make_network, ReportWords.of_config(config["words"]), writing)


def load_encoder_decoder(folder: Path, sizes: type, network: NetworkKind, row: str) -> WriterSystem:
    """The trained writer in a folder.

    Args:
        folder: what `train_encoder_decoder` wrote.
        sizes: dataclass of the network's sizes.
        network: see `NetworkKind`.
        row: its table row.
    """

    def build(config: Mapping[str, Any]) -> EncoderDecoderWriter:
        made: Any = read_settings(sizes, config["network"], "config.json:writer.network")
        return writer_of_config(config, partial(network, made))

    return WriterSystem(load_writer(folder, build), row)
