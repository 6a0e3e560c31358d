"""LLaVA-Rad (Zambrano Chaves et al. 2025, arXiv:2403.08002; code: microsoft/LLaVA-Rad) as a report writer.

The patches of a vision transformer (last layer but one, without the class token) go through two linear maps with GELU
between them and stand among the words of a prompt, from which Vicuna goes on. Trained in two stages (its scripts/):

1. pretrain.sh: only the projector learns; the picture alone is the prompt ("plain");
2. finetune_lora.sh: the projector and LoRA on the language model (or all of it, where `lora: null`), with the prompt.

Both are one training here: the first `projector_steps` steps are stage 1, a function of the step alone, so that a
training that was killed goes on exactly. Decoded greedily. The network is transformers'
LlavaForConditionalGeneration.

What differs: one learning rate for both stages (there 1e-3, then 1e-4); no reason for the exam in the prompt, which
other systems do not see either; the tower learns too where it is not `frozen`; where no BiomedCLIP and no Vicuna are at
hand, `pretraining` trains all parts together on other pairs, with the prompt and without stage 1.

Letters: B pairs of a batch, S pixels a side, P patches of a picture, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from medim.baselines.base import Method, Trained, TrainInputs
from medim.baselines.lora import LoraSettings, merge_lora
from medim.baselines.method_settings import read_settings
from medim.baselines.picture_encoders import to_tower, tower_config
from medim.baselines.pretraining import WriterPretraining, check_one_start
from medim.baselines.prompted_decoder import Decoding, PromptedDecoder
from medim.baselines.prompted_writer import LANGUAGE, PromptedWriter, existing, llama_config, split_template
from medim.baselines.published_llava_rad import language_state, read_release, vision_state
from medim.baselines.published_words import PublishedWords, WordSettings
from medim.baselines.report_writer import WriterSystem, load_writer
from medim.baselines.weight_files import fill, read_weights, under
from medim.baselines.writer_prior import Prior
from medim.baselines.writer_training import WriterRecipe, train_writer
from medim.training import Optimisation

PLACE = "params.yaml:train_baseline.settings.llava_rad"
PICTURE = "<image>"  # stands in the prompt where the picture goes
PROJECTOR = "network.model.multi_modal_projector."
FEATURE_LAYER = -2


@dataclass(frozen=True)
class LlavaRadNetwork:
    """Sizes, prompt and decoding."""

    vision: Mapping[str, Any]  # as ViTConfig takes them
    language: Mapping[str, Any]  # as LlamaConfig takes them
    prompt: str  # holds <image> once; published: conversation v1, "… USER: <image>\n… ASSISTANT:"
    lora: LoraSettings | None  # published: rank 64, alpha 128, dropout 0.05; null: the whole language model learns
    decoding: Decoding  # published: greedy


@dataclass(frozen=True)
class LlavaRadStart:
    """Released weights; see published_llava_rad.py."""

    vision: str | None  # biomedclipcxr_518_checkpoint.pt
    language: str | None  # Hugging Face folder of Vicuna
    release: str | None  # folder with LLaVA-Rad's projector and, perhaps, its LoRA, which is merged


@dataclass(frozen=True)
class LlavaRadSettings:
    """The values stand in params.yaml."""

    words: WordSettings
    network: LlavaRadNetwork
    start: LlavaRadStart
    frozen: tuple[str, ...]  # vision, language; published: vision
    projector_steps: int  # stage 1
    val_pairs: int  # a dataset
    pretraining: WriterPretraining | None  # a first training of it all; words and weights are kept
    optim: Optimisation

    def __post_init__(self) -> None:
        """Check the stages and the start.

        Raises:
            ValueError: stage 1 would last to the end; or see `check_one_start`.
        """
        check_one_start(self.pretraining is not None, self.starts)
        if not 0 <= self.projector_steps < self.optim.steps:
            raise ValueError(
                f"projector_steps must lie in [0, optim.steps = {self.optim.steps}), got {self.projector_steps}"
            )

    @property
    def starts(self) -> dict[str, str | None]:
        """See `check_one_start`."""
        return {f"start.{name}": path for name, path in asdict(self.start).items()}


class LlavaRadWriter(PromptedWriter):
    """LLaVA-Rad with its words."""

    SIZES: ClassVar[type] = LlavaRadNetwork
    BUILT: ClassVar[tuple[str, ...]] = ("vision", "language")
    PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("network.model.vision_tower",),
        LANGUAGE: ("network.model.language_model", "network.lm_head"),
    }
    SEEING = ("vision",)

    def __init__(self, sizes: LlavaRadNetwork, words: PublishedWords) -> None:
        super().__init__(sizes, words)
        self.pieces = [words.pieces(piece) for piece in split_template(sizes.prompt, [PICTURE])]
        self.network = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=tower_config("vit", sizes.vision), text_config=llama_config(sizes.language, words),
                projector_hidden_act="gelu", vision_feature_layer=FEATURE_LAYER,
                vision_feature_select_strategy="default",
            )
        )  # fmt: skip
        self.network.model.vision_tower.pooler = None  # nothing looks through it
        self.projector_steps = 0
        self.learning: frozenset[str] | None = None  # names of what learns in stage 2
        self.plain = False

    @property
    def decoder(self) -> PromptedDecoder:
        """See `PromptedWriter`."""
        network, words = self.network, self.words
        return PromptedDecoder(network.model.language_model, network.lm_head, words.end, words.max_tokens)

    def patches(self, images: Tensor) -> Tensor:
        """See `ReportWriter`; those that the projector is given."""
        pixels = to_tower(images, self.network.config.vision_config)
        found = self.network.model.vision_tower(pixel_values=pixels, output_hidden_states=True)
        seen: Tensor = found.hidden_states[FEATURE_LAYER]
        return seen[:, 1:]

    def pictures(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, P, D): what the language model sees of each patch."""
        pixels = to_tower(images, self.network.config.vision_config)
        return torch.stack(list(self.network.get_image_features(pixels, return_dict=True).pooler_output))

    def prompts(self, images: Tensor) -> list[Tensor]:
        """See `PromptedWriter`."""
        return self.assembled(self.pieces, [[picture] for picture in self.pictures(images)])

    def begin_step(self, step: int) -> None:
        """Stage 1 while `step` < projector_steps: only the projector learns, and the prompt is the picture alone."""
        if self.learning is None:
            self.learning = frozenset(name for name, value in self.named_parameters() if value.requires_grad)
        first = step < self.projector_steps
        if first != self.plain:
            self.plain = first
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in self.learning and (not first or name.startswith(PROJECTOR)))

    def loss(self, images: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """See `ReportWriter`; mean over the tokens of cross-entropy."""
        pieces = [[], []] if self.plain else self.pieces
        rows = self.assembled(pieces, [[picture] for picture in self.pictures(images)])
        return self.decoder.nats(rows, self.words.encode(texts)).mean()

    @torch.no_grad()
    def write(self, images: Tensor, seeds: Sequence[int]) -> list[str]:
        """See `ReportWriter`."""
        found = self.decoder.write(self.prompts(images), self.sizes.decoding, seeds)
        return [self.words.decode(ids) for ids in found]

    def start_from(self, start: LlavaRadStart) -> dict[str, bool]:
        """Fill the network in place; part -> whether it has pretrained weights.

        Raises:
            FileNotFoundError, ValueError: see published_llava_rad.py and `fill`.
        """
        model = self.network.model
        vision, language, release = (existing(path) for path in (start.vision, start.language, start.release))
        if vision is not None:
            patches = model.vision_tower.embeddings.position_embeddings.shape[1] - 1
            fill(model.vision_tower, vision_state(read_weights(vision), patches), str(vision))
        projector, adapter = (None, None) if release is None else read_release(release)
        if projector is not None:
            fill(model.multi_modal_projector, projector, str(release))
        if adapter is not None and language is None:
            raise ValueError(f"{release} changes Vicuna by LoRA: set start.language ({PLACE})")
        if language is not None:
            state = language_state(read_weights(language), adapter)
            fill(model.language_model, under(state, "model."), str(language))
            head = {"weight": state.get("lm_head.weight", state["model.embed_tokens.weight"])}
            fill(self.network.lm_head, head, str(language))
        return {"vision": vision is not None, LANGUAGE: language is not None}


def first_llava_rad(settings: LlavaRadSettings, texts: Sequence[str]) -> LlavaRadWriter:
    """An untrained writer whose pretraining has stage 2's loss alone: all of it learns, and there is no LoRA as yet.

    Raises:
        FileNotFoundError, ValueError: see `PublishedWords.build`.
    """
    return LlavaRadWriter(replace(settings.network, lora=None), PublishedWords.build(settings.words, texts))


def build_llava_rad(settings: LlavaRadSettings, texts: Sequence[str], prior: Prior | None = None) -> LlavaRadWriter:
    """An untrained writer as stage 1 finds it.

    Raises:
        FileNotFoundError, ValueError: see `PublishedWords`, `start_from`, `start_from_prior` and `hold`.
    """
    if prior is None:
        writer = LlavaRadWriter(settings.network, PublishedWords.build(settings.words, texts))
        have = writer.start_from(settings.start)
    else:
        words = PublishedWords.of_prior(prior.config["words"], settings.words, texts)
        writer = LlavaRadWriter(settings.network, words)
        have = writer.start_from_prior(prior, settings.pretraining)
    lora = settings.network.lora
    writer.hold((*settings.frozen, *([LANGUAGE] if lora else [])), have)
    writer.adapt(lora)
    writer.projector_steps = settings.projector_steps
    return writer


def train(inputs: TrainInputs) -> Trained:
    """Train LLaVA-Rad; see `train_writer`. settings: see `LlavaRadSettings`."""
    settings = read_settings(LlavaRadSettings, inputs.settings, PLACE)

    recipe = WriterRecipe(
        "medim.baselines.llava_rad", settings.optim, settings.val_pairs, partial(build_llava_rad, settings),
        settings.pretraining, partial(first_llava_rad, settings), kept_whole=True, starts=settings.starts,
    )  # fmt: skip
    return train_writer(inputs, recipe)


def load_system(folder: Path, **_: object) -> WriterSystem:
    """The writer in `folder`, LoRA merged."""
    writer = load_writer(folder, LlavaRadWriter.of_config)
    merge_lora(writer)
    return WriterSystem(writer, METHOD.label)


METHOD = Method("llava_rad", "LLaVA-Rad", "MED", "https://github.com/microsoft/LLaVA-Rad", train)
