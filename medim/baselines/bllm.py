"""BLLM, also R2-LLM (Liu et al. 2024, AAAI; code: synlp/R2-LLM) as a report writer.

MiniGPT-4's shape: vision transformer, BLIP-2's Q-Former whose queries ask the picture, one linear map into the width of
the language model, a Llama with LoRA (or whole, where `lora: null`). The network is transformers'
Blip2ForConditionalGeneration. Two stages in one training, told apart by the step alone:

1. a language model of reports given the picture;
2. "generate then refine": a coarse report is drawn (nucleus, no gradient), then
   - in-domain instance induction, see bllm_induction.py,
   - coarse-to-fine refinement: a prompt with the picture and the coarse report, loss on the true report.

A report is written in two passes, coarse and refined; in the released code the second sees neither the picture nor the
first half of its prompt (`mixed_embs` is assigned twice), and training reads the first picture's coarse report for all.
Validation curves are of the first pass, which needs no draw.

What differs beside that: the end of a text is the tokenizer's end and not "###"; one prompt a pass, not one drawn from
a list (which is not published); coarse reports of a part of the batch, in a part of the steps, and stage 1's loss in
stage 2 too, each as a setting whose published value is said in `Bootstrapping`; where no BLIP-2 and no Vicuna are at
hand, `pretraining` trains all parts by stage 1's loss on other pairs, or tower and Q-Former contrastively.

Letters: B pairs of a batch, S pixels a side, Q queries, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig

from medim.baselines.base import Method, Trained, TrainInputs
from medim.baselines.bllm_induction import Bootstrapping, ReportBank, induction_loss, summaries
from medim.baselines.lora import LoraSettings, merge_lora
from medim.baselines.method_settings import read_settings
from medim.baselines.picture_encoders import FIRST_STD, to_tower, tower_config
from medim.baselines.pretraining import WriterPretraining, check_one_start
from medim.baselines.prompted_decoder import Decoding, PromptedDecoder
from medim.baselines.prompted_writer import LANGUAGE, PromptedWriter, existing, llama_config, split_template
from medim.baselines.published_words import PublishedWords, WordSettings
from medim.baselines.report_writer import Contrasted, WriterSystem, load_writer
from medim.baselines.weight_files import fill, read_weights, under
from medim.baselines.writer_prior import Prior
from medim.baselines.writer_training import WriterRecipe, train_writer
from medim.training import Optimisation, step_seed

PLACE = "params.yaml:train_baseline.settings.bllm"
PICTURE, REPORT = "<ImageHere>", "<ReportHere>"  # stand in the prompts where picture and coarse report go


@dataclass(frozen=True)
class BllmNetwork:
    """Sizes, prompts and decoding."""

    vision: Mapping[str, Any]  # as Blip2VisionConfig takes them; published: EVA-CLIP ViT-g/14 at 224
    qformer: Mapping[str, Any]  # as Blip2QFormerConfig takes them
    queries: int  # published: 32
    language: Mapping[str, Any]  # as LlamaConfig takes them; published: Vicuna-7B
    lora: LoraSettings | None  # on the language model; null: all of it learns
    coarse_prompt: str  # holds <ImageHere>; published: "###Human: <Img><ImageHere></Img> … ###Assistant: "
    refine_prompt: str  # holds <ImageHere>, then <ReportHere>
    coarse: Decoding  # of the first pass; published: nucleus, top_p 0.9, temperature 1
    answer: Decoding  # of the second; published: the same


@dataclass(frozen=True)
class BllmStart:
    """Pretrained weights."""

    blip2: str | None  # Hugging Face folder of a BLIP-2: its tower, queries and Q-Former
    language: str | None  # Hugging Face folder of Vicuna


@dataclass(frozen=True)
class BllmSettings:
    """The values stand in params.yaml."""

    words: WordSettings
    network: BllmNetwork
    start: BllmStart
    frozen: tuple[str, ...]  # vision, qformer, language; published: vision, qformer
    bootstrapping: Bootstrapping
    val_pairs: int  # a dataset
    pretraining: WriterPretraining | None  # a first training by stage 1's loss; its words and all weights are kept
    optim: Optimisation

    def __post_init__(self) -> None:
        """Check the stages and the start.

        Raises:
            ValueError: stage 1 would last to the end, and no refinement would be learned; or see `check_one_start`.
        """
        check_one_start(self.pretraining is not None, self.starts)
        if self.bootstrapping.align_steps >= self.optim.steps:
            raise ValueError(
                f"bootstrapping.align_steps must be below optim.steps, {self.optim.steps}, got "
                f"{self.bootstrapping.align_steps}"
            )

    @property
    def starts(self) -> dict[str, str | None]:
        """See `check_one_start`."""
        return {f"start.{name}": path for name, path in asdict(self.start).items()}


def blip2_config(sizes: BllmNetwork, words: PublishedWords) -> Blip2Config:
    """The configuration of transformers."""
    return Blip2Config(
        vision_config=tower_config("blip_2_vision_model", sizes.vision),
        qformer_config=Blip2QFormerConfig(**sizes.qformer),
        text_config=llama_config(sizes.language, words).to_dict(),
        num_query_tokens=sizes.queries,
    )


class BllmWriter(PromptedWriter):
    """BLLM with its words."""

    SIZES: ClassVar[type] = BllmNetwork
    BUILT: ClassVar[tuple[str, ...]] = ("vision", "qformer", "queries", "language")
    PARTS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vision": ("network.vision_model",),
        "qformer": ("network.qformer", "network.query_tokens"),
        LANGUAGE: ("network.language_model",),
    }
    SEEING = ("vision", "qformer")

    def __init__(self, sizes: BllmNetwork, words: PublishedWords) -> None:
        super().__init__(sizes, words)
        coarse = split_template(sizes.coarse_prompt, [PICTURE])
        refine = split_template(sizes.refine_prompt, [PICTURE, REPORT])
        self.coarse_pieces, self.refine_pieces = ([words.pieces(p) for p in pieces] for pieces in (coarse, refine))
        self.network = Blip2ForConditionalGeneration(blip2_config(sizes, words))
        # transformers starts them at 0, where all queries are and stay one; BLIP-2's code draws them
        nn.init.normal_(self.network.query_tokens, std=FIRST_STD)
        self.plan: Bootstrapping | None = None  # None: stage 1 at every step
        self.bank: ReportBank | None = None
        self.step = 0

    @property
    def decoder(self) -> PromptedDecoder:
        """See `PromptedWriter`."""
        causal, words = self.network.language_model, self.words
        return PromptedDecoder(causal.model, causal.lm_head, words.end, words.max_tokens)

    def patches(self, images: Tensor) -> Tensor:
        """See `ReportWriter`; without the class token."""
        return self._looked(images)[:, 1:]

    def _looked(self, images: Tensor) -> Tensor:
        """(B, 1 + n, d): the tower's last layer, class token first."""
        pixels = to_tower(images, self.network.config.vision_config)
        found: Tensor = self.network.vision_model(pixel_values=pixels).last_hidden_state
        return found

    def contrasted(self, images: Tensor) -> Contrasted:
        """See `ReportWriter`."""
        found = self._looked(images)
        queries = self.network.query_tokens.expand(len(found), -1, -1)
        asked = self.network.qformer(query_embeds=queries, encoder_hidden_states=found.detach()).last_hidden_state
        return Contrasted(found[:, 1:], asked)

    def pictures(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, Q, D): what the language model sees of each picture."""
        pixels = to_tower(images, self.network.config.vision_config)
        found: Tensor = self.network.get_image_features(pixels, return_dict=True).pooler_output
        return found

    def prompts(self, images: Tensor) -> list[Tensor]:
        """See `PromptedWriter`: those of the first pass."""
        return self.coarse_prompts(self.pictures(images))

    def coarse_prompts(self, pictures: Tensor) -> list[Tensor]:
        """What stands before a coarse report, from (B, Q, D)."""
        return self.assembled(self.coarse_pieces, [[picture] for picture in pictures])

    def refine_prompts(self, pictures: Tensor, coarse: Sequence[Sequence[int]]) -> list[Tensor]:
        """What stands before a refined report: picture and coarse report."""
        embed = self.decoder.embed
        filled = [[picture, embed(ids)] for picture, ids in zip(pictures, coarse, strict=True)]
        return self.assembled(self.refine_pieces, filled)

    def begin_step(self, step: int) -> None:
        """See `ReportWriter`."""
        self.step = step

    def loss(self, images: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """See `ReportWriter`; stage 1's loss, or the weighted sum of stage 2's (see `Bootstrapping`)."""
        pictures = self.pictures(images)
        if self.plan is None or self.step < self.plan.align_steps:
            return self._plain(pictures, texts)
        total = torch.zeros((), device=pictures.device)
        if self.plan.coarse_weight:
            total = total + self.plan.coarse_weight * self._plain(pictures, texts)
        if self.plan.refines(self.step):
            chosen = torch.randperm(len(texts), generator=generator)[: self.plan.pairs].tolist()
            total = total + self._bootstrapped(pictures[chosen], [texts[row] for row in chosen], generator)
        return total

    def _plain(self, pictures: Tensor, texts: Sequence[str]) -> Tensor:
        return self.decoder.nats(self.coarse_prompts(pictures), self.words.encode(texts)).mean()

    def _bootstrapped(self, pictures: Tensor, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        assert self.plan is not None
        seeds = torch.randint(2**62, (len(texts),), generator=generator).tolist()
        coarse = self.draw_coarse(pictures, seeds)
        prompts = self.refine_prompts(pictures, coarse)
        total = self.plan.refinement_weight * self.decoder.nats(prompts, self.words.encode(texts)).mean()
        if self.plan.triplet_weight:
            total = total + self.plan.triplet_weight * self.induction(pictures, coarse, texts, generator)
        return total

    def draw_coarse(self, pictures: Tensor, seeds: Sequence[int]) -> list[list[int]]:
        """Ids of a coarse report for each of (B, Q, D), in eval mode and without gradient."""
        training = self.training
        self.eval()
        found = self.decoder.write(self.coarse_prompts(pictures.detach()), self.sizes.coarse, seeds)
        self.train(training)
        return found

    def induction(
        self, pictures: Tensor, coarse: Sequence[Sequence[int]], texts: Sequence[str], generator: torch.Generator
    ) -> Tensor:
        """In-domain instance induction of coarse reports (B, …) of the pictures (B, Q, D) of training texts."""
        assert self.plan is not None and self.bank is not None
        bank, number = self.bank, self.plan.references
        found = [(row, text) for row, own in enumerate(texts) for text in bank.references(own, number)]
        rows = [row for row, _ in found]
        foreign = [bank.foreign(texts[row], generator) for row in rows]
        anchor = self._summaries(pictures, [[*ids, self.words.end] for ids in coarse])[rows]
        positive = self._summaries(pictures[rows], self.words.encode([text for _, text in found]))
        negative = self._summaries(pictures[rows], self.words.encode(foreign))
        return induction_loss(anchor, positive, negative, self.plan.margin)

    def _summaries(self, pictures: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
        return summaries(self.decoder.states(self.assembled([[], []], [[picture] for picture in pictures]), texts))

    @torch.no_grad()
    def write(self, images: Tensor, seeds: Sequence[int]) -> list[str]:
        """See `ReportWriter`; both passes draw from generators of the seed alone."""
        pictures = self.pictures(images)
        prompts = self.refine_prompts(pictures, self.draw_coarse(pictures, seeds))
        found = self.decoder.write(prompts, self.sizes.answer, [step_seed(seed, 1) for seed in seeds])
        return [self.words.decode(ids) for ids in found]

    def start_from(self, start: BllmStart) -> dict[str, bool]:
        """Fill the network in place; part -> whether it has pretrained weights.

        Raises:
            FileNotFoundError, ValueError: see `read_weights` and `fill`.
        """
        network = self.network
        blip2, language = existing(start.blip2), existing(start.language)
        if blip2 is not None:
            weights = read_weights(blip2)
            for name in ("vision_model", "qformer"):
                fill(network.get_submodule(name), under(weights, f"{name}."), str(blip2))
            with torch.no_grad():
                network.query_tokens.copy_(weights["query_tokens"])
        if language is not None:
            buffers = (".rotary_emb.inv_freq",)
            weights = {n: v for n, v in read_weights(language).items() if not n.endswith(buffers)}
            fill(network.language_model, weights, str(language))
        return {"vision": blip2 is not None, "qformer": blip2 is not None, LANGUAGE: language is not None}


def first_bllm(settings: BllmSettings, texts: Sequence[str]) -> BllmWriter:
    """An untrained writer whose pretraining is stage 1's loss alone: all of it learns, and there is no LoRA as yet.

    Raises:
        FileNotFoundError, ValueError: see `PublishedWords.build`.
    """
    return BllmWriter(replace(settings.network, lora=None), PublishedWords.build(settings.words, texts))


def build_bllm(
    settings: BllmSettings, bank: ReportBank | None, texts: Sequence[str], prior: Prior | None = None
) -> BllmWriter:
    """An untrained writer as stage 1 finds it; `bank` may be None where triplet_weight is 0.

    Raises:
        FileNotFoundError, ValueError: see `PublishedWords`, `start_from`, `start_from_prior` and `hold`.
    """
    if prior is None:
        writer = BllmWriter(settings.network, PublishedWords.build(settings.words, texts))
        have = writer.start_from(settings.start)
    else:
        words = PublishedWords.of_prior(prior.config["words"], settings.words, texts)
        writer = BllmWriter(settings.network, words)
        have = writer.start_from_prior(prior, settings.pretraining)
    lora = settings.network.lora
    writer.hold((*settings.frozen, *([LANGUAGE] if lora else [])), have)
    writer.adapt(lora)
    writer.plan, writer.bank = settings.bootstrapping, bank
    return writer


def train(inputs: TrainInputs) -> Trained:
    """Train BLLM; see `train_writer`. settings: see `BllmSettings`.

    Raises:
        ValueError: see `ReportBank`, which is needed unless triplet_weight is 0.
    """
    settings = read_settings(BllmSettings, inputs.settings, PLACE)
    files = {name: inputs.pairs[name]["train"] for name in inputs.datasets}
    bank = ReportBank.of_files(files) if settings.bootstrapping.triplet_weight else None

    recipe = WriterRecipe(
        "medim.baselines.bllm", settings.optim, settings.val_pairs, partial(build_bllm, settings, bank),
        settings.pretraining, partial(first_bllm, settings), kept_whole=True, starts=settings.starts,
    )  # fmt: skip
    return train_writer(inputs, recipe)


def load_system(folder: Path, **_: object) -> WriterSystem:
    """The writer in `folder`, LoRA merged."""
    writer = load_writer(folder, BllmWriter.of_config)
    merge_lora(writer)
    return WriterSystem(writer, METHOD.label)


METHOD = Method("bllm", "BLLM", "MED", "https://github.com/synlp/R2-LLM", train)
