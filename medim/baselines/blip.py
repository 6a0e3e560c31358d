"""BLIP (Li et al. 2022, arXiv:2201.12086; code: salesforce/BLIP @056a169) as a report writer.

A vision transformer, and a BERT decoder that looks at its patches through cross-attention in every layer; trained by
cross-entropy with label smoothing 0.1 (models/med.py), decoded by 3 beams. The network is transformers'
BlipForConditionalGeneration.

What differs from the captioning code, and why:

- nothing is cut: there captions end at 40 tokens in training and at 20 when decoding (models/blip.py,
  configs/caption_coco.yaml), and full stops are removed (data/utils.py), which cripples reports;
- the prompt is predicted too: there "a picture of " is the same for all and masked from the loss, here it names the
  modality and belongs to the text;
- no random crops, flips and RandAugment: a flip contradicts a report that names sides;
- one cosine with warm-up (`Optimisation`), as for all systems, in the place of a cosine per epoch;
- without released weights, the image-text pretraining is a training by the same loss or of the vision transformer
  alone (`pretraining`), which can stand still behind it (`frozen`).

Letters: B pairs of a batch, S pixels a side, L tokens of the longest text, V words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig

from medim.baselines.base import Method, Trained, TrainInputs
from medim.baselines.method_settings import read_settings
from medim.baselines.picture_encoders import to_tower, tower_config
from medim.baselines.pretraining import WriterPretraining, check_one_start
from medim.baselines.published_blip import load_released_blip
from medim.baselines.published_words import PublishedWords, WordSettings
from medim.baselines.report_writer import ReportWriter, WriterSystem, load_writer
from medim.baselines.writer_prior import Prior
from medim.baselines.writer_training import WriterRecipe, train_writer
from medim.training import Optimisation

PLACE = "params.yaml:train_baseline.settings.blip"
IGNORED = -100  # label of what is not predicted


@dataclass(frozen=True)
class BlipNetwork:
    """Sizes and decoding."""

    vision: Mapping[str, Any]  # as BlipVisionConfig takes them
    text: Mapping[str, Any]  # as BlipTextConfig takes them
    label_smoothing: float  # published: 0.1
    beams: int  # published: 3


@dataclass(frozen=True)
class BlipSettings:
    """The values stand in params.yaml."""

    words: WordSettings
    network: BlipNetwork
    start: str | None  # released model_base*.pth
    val_pairs: int  # a dataset
    pretraining: WriterPretraining | None  # a first training, of which words and all weights are kept
    frozen: tuple[str, ...]  # parts that do not learn behind it: vision; published: none
    optim: Optimisation

    def __post_init__(self) -> None:
        """See `check_one_start`."""
        check_one_start(self.pretraining is not None, {"start": self.start})


def blip_config(network: BlipNetwork, words: PublishedWords) -> BlipConfig:
    """The configuration of transformers.

    Raises:
        ValueError: the text decoder has too few positions for the begin and a text.
    """
    ids = {"vocab_size": words.size, "bos_token_id": words.begin, "eos_token_id": words.end,
           "sep_token_id": words.end, "pad_token_id": words.padding}  # fmt: skip
    text = BlipTextConfig(**network.text, **ids, label_smoothing=network.label_smoothing)
    if text.max_position_embeddings < words.max_tokens + 1:
        raise ValueError(
            f"words.max_tokens, {words.max_tokens}, and the begin need more than the {text.max_position_embeddings} "
            f"positions of network.text.max_position_embeddings ({PLACE})"
        )
    return BlipConfig(text_config=text, vision_config=tower_config("blip_vision_model", network.vision))


class BlipWriter(ReportWriter):
    """BLIP with its words."""

    PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {"vision": ("network.vision_model",)}
    SEEING = ("vision",)

    def __init__(self, sizes: BlipNetwork, words: PublishedWords) -> None:
        super().__init__()
        self.sizes, self.words = sizes, words
        self.network = BlipForConditionalGeneration(blip_config(sizes, words))

    def _pixels(self, images: Tensor) -> Tensor:
        return to_tower(images, self.network.config.vision_config)

    def patches(self, images: Tensor) -> Tensor:
        """See `ReportWriter`; without the class token."""
        found: Tensor = self.network.vision_model(pixel_values=self._pixels(images)).last_hidden_state
        return found[:, 1:]

    @property
    def token_kinds(self) -> int:
        """See `ReportWriter`."""
        return self.words.size

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `ReportWriter`."""
        return self.words.batch(texts, whole=True)

    def _batch(self, images: Tensor, texts: Sequence[str], whole: bool) -> dict[str, Tensor]:
        ids, mask = (part.to(images.device) for part in self.words.batch(texts, whole))
        places = self.network.config.text_config.max_position_embeddings
        if ids.shape[1] > places:
            raise ValueError(
                f"the longest of {len(texts)} texts has {ids.shape[1]} tokens with begin and end, the decoder "
                f"{places} positions: raise network.text.max_position_embeddings ({PLACE})"
            )
        labels = ids.masked_fill(~mask, IGNORED)
        return {"pixel_values": self._pixels(images), "input_ids": ids, "attention_mask": mask, "labels": labels}

    def loss(self, images: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """See `ReportWriter`; mean over the tokens of cross-entropy with label smoothing."""
        loss: Tensor = self.network(**self._batch(images, texts, whole=False)).loss
        return loss

    def nats(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See `ReportWriter`; of whole texts, which must fit the positions."""
        batch = self._batch(images, texts, whole=True)
        targets = batch.pop("labels")[:, 1:].flatten()
        logits = self.network(**batch).logits[:, :-1].flatten(0, 1).float()
        total = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return total, (targets != IGNORED).sum()

    @torch.no_grad()
    def write(self, images: Tensor, seeds: Sequence[int]) -> list[str]:
        """See `ReportWriter`; beam search of transformers, scored by mean log p; the seeds are not used."""
        ids = self.network.generate(
            pixel_values=self._pixels(images), num_beams=self.sizes.beams, do_sample=False,
            max_new_tokens=self.words.max_tokens,
        )  # fmt: skip
        return [self.words.decode(row[1:]) for row in ids.tolist()]

    def config(self) -> dict[str, Any]:
        """See `ReportWriter`."""
        return {"network": asdict(self.sizes), "words": self.words.config()}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> BlipWriter:
        """The inverse of `config`, untrained."""
        sizes = read_settings(BlipNetwork, config["network"], f"{PLACE}.network")
        return cls(sizes, PublishedWords.of_config(config["words"]))


def first_blip(settings: BlipSettings, texts: Sequence[str]) -> BlipWriter:
    """The writer that its pretraining begins with; nothing of it stands still."""
    return BlipWriter(settings.network, PublishedWords.build(settings.words, texts))


def build_blip(settings: BlipSettings, texts: Sequence[str], prior: Prior | None = None) -> BlipWriter:
    """An untrained writer, from a prior or the released weights where one is given.

    Raises:
        FileNotFoundError, ValueError: see `PublishedWords`, `load_released_blip`, `Prior` and `hold`.
    """
    if prior is not None:
        writer = BlipWriter(settings.network, PublishedWords.of_prior(prior.config["words"], settings.words, texts))
        prior.check_sizes(writer.config(), ["network.vision", "network.text"])
        prior.fill(writer)
        writer.hold(settings.frozen, dict.fromkeys(writer.PARTS, True))
        return writer
    writer = first_blip(settings, texts)
    if settings.start is not None:
        print(f"blip: {load_released_blip(writer.network, Path(settings.start))} tensors from {settings.start}")
    writer.hold(settings.frozen, dict.fromkeys(writer.PARTS, settings.start is not None))
    return writer


def train(inputs: TrainInputs) -> Trained:
    """Train BLIP; see `train_writer`. settings: see `BlipSettings`."""
    settings = read_settings(BlipSettings, inputs.settings, PLACE)

    recipe = WriterRecipe(
        "medim.baselines.blip", settings.optim, settings.val_pairs, partial(build_blip, settings),
        settings.pretraining, partial(first_blip, settings), kept_whole=True, starts={"start": settings.start},
    )  # fmt: skip
    return train_writer(inputs, recipe)


def load_system(folder: Path, **_: object) -> WriterSystem:
    """The writer in `folder`."""
    return WriterSystem(load_writer(folder, BlipWriter.of_config), METHOD.label)


METHOD = Method("blip", "BLIP", "NA", "https://github.com/salesforce/BLIP", train)
