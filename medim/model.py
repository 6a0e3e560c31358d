"""MeDiM: one discrete diffusion over the picture and the report of a pair (paper Sec. 2).

The vocabulary says which ids exist, the layout where they stand, the backbone predicts the masked ones, medim.diffusion
masks and unmasks. The questions that a trained model answers are in questions.py: special cases of one sampler.

Letters: B batch, L positions, T report tokens, n codes of a picture.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medim.backbones.backbone import Backbone, BackboneRecipe
from medim.backbones.mllm import BackboneSettings
from medim.diffusion.absorbing import (
    Nelbo,
    Noisy,
    cap_weight,
    complement,
    corrupt,
    cover,
    join,
    nelbo,
    of_rows,
    sample_t,
)
from medim.diffusion.denoise import ModalityLogits
from medim.diffusion.schedule import get_schedule
from medim.diffusion.space import TokenSpace
from medim.diffusion.states import (
    StateMaps,
    all_masked_times,
    assign_states,
    check_all_masked,
    check_ends,
    check_fractions,
    check_probabilities,
    state_maps,
)  # fmt: skip
from medim.distributed import ALONE, Ranks, current_ranks, gathered
from medim.tokenizers.text import TextTokenizer
from medim.vocab import SequenceLayout, SharedVocab


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of B pairs: report ids (B, T) int64, codes (B, n) int64, leading report ids that are the prompt."""

    text: Tensor
    image: Tensor
    prompt_tokens: Tensor  # (B,) int64
    part: tuple[int, int] = (
        0,
        1,
    )  # (which, of how many) of a step's batch these pairs are; times are stratified over all

    def to(self, device: torch.device) -> TokenBatch:
        """The same on a device."""
        return TokenBatch(self.text.to(device), self.image.to(device), self.prompt_tokens.to(device), self.part)

    def report_tokens(self, eos: int) -> Tensor:
        """(B,) int64, report tokens before the first EOS."""
        return (self.text != eos).int().cumprod(1).sum(1)


@dataclass(frozen=True)
class LossSettings:
    """What is trained; the values stand in params.yaml."""

    states: Mapping[str, float]  # share of each training state, see medim.diffusion.states
    prompt_keep: float  # probability that the prompt stays clean where the report is noisy
    length_known: float  # probability that every EOS stays clean where the report is noisy
    cut: float  # probability that all from a place on is masked where the report alone is asked for
    condition_dropout: float  # probability that a condition is hidden; what guidance subtracts
    all_masked: Mapping[str, float]  # state -> share of its samples of which nothing is known but the condition
    sampling_eps: float  # smallest time
    weighting: str  # nelbo | min_cap | softmin_cap
    cap: float  # largest weight of a token, see absorbing.cap_weight
    text_weight: float
    image_weight: float
    complementary: bool  # each sample a second time with exactly the other tokens masked (twice the cost)

    def __post_init__(self) -> None:
        """Check states, probabilities, weighting, cap, and that what is cut has no complement.

        Raises:
            ValueError: names the parameter, its value and what is possible.
        """
        check_fractions(self.states)
        check_all_masked(self.all_masked)
        check_probabilities(
            prompt_keep=self.prompt_keep, condition_dropout=self.condition_dropout, sampling_eps=self.sampling_eps
        )
        check_ends(self.length_known, self.cut)
        if self.complementary and self.cut:
            raise ValueError(
                f"complementary masks need cut 0, got {self.cut}: a complement would show the end of a cut report at a "
                f"time that is not its own (params.yaml)"
            )
        cap_weight(torch.ones(()), self.weighting, self.cap)


class MeDiM(nn.Module):
    """Vocabulary, layout, report tokenizer and backbone; see `loss`, `save` and `MeDiM.load`.

    `forward` is the backbone's: it implements `Denoise`. A subclass is the same diffusion with another backbone.
    """

    recipe: ClassVar[Callable[..., BackboneRecipe]] = BackboneSettings  # what config.json's "backbone" describes
    stage: ClassVar[str] = "train_medim"  # the instance that makes this model; stands in errors

    def __init__(
        self,
        tokenizer: TextTokenizer,
        codebook_size: int,
        layout: SequenceLayout,
        backbone: BackboneRecipe,
        noise: str,
    ) -> None:
        """`noise` names the schedule (medim.diffusion.schedule); the sampler must use the one that was trained."""
        super().__init__()
        self.tokenizer, self.layout, self.noise = tokenizer, layout, noise
        self.vocab = SharedVocab(tokenizer.size, codebook_size)
        self.space = TokenSpace(layout, self.vocab, tokenizer.allowed(), tokenizer.eos_id, tokenizer.last_characters())
        self.schedule = get_schedule(noise)
        self.backbone: Backbone = backbone.build(self.vocab, layout)

    def forward(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        """See `Denoise`."""
        return self.backbone(xt, t, positions)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def sequence(self, text: Tensor | None, codes: Tensor | None, num: int | None = None) -> Tensor:
        """(B, L) shared ids BOI | picture | EOI | report; a part that is None is all [MASK].

        Args:
            text: (B, T) report ids, mask_id where unknown.
            codes: (B, n) codes.
            num: B, needed where both are None.

        Raises:
            ValueError: ids outside their alphabet, or a length that is not the layout's.
        """
        given = text if text is not None else codes
        rows, device = (num or 0, self.device) if given is None else (len(given), given.device)
        x = torch.full((rows, self.layout.length), self.vocab.mask_id, device=device)
        x[:, self.layout.image.start - 1] = self.tokenizer.boi_id
        x[:, self.layout.image.stop] = self.tokenizer.eoi_id
        for name, part, where, wanted in (
            ("report", text, self.layout.text, self.layout.n_text),
            ("picture", codes, self.layout.image, self.layout.n_image),
        ):
            if part is None:
                continue
            if part.shape[1] != wanted:
                raise ValueError(
                    f"a {name} has {wanted} tokens here, got {part.shape[1]}: rerun `dvc repro {self.stage}`"
                )
            x[:, where] = self.vocab.from_codes(part) if name == "picture" else part
        self.space.check(x)
        return x

    def noisy(
        self, x0: Tensor, maps: StateMaps, settings: LossSettings, generator: torch.Generator,
        part: tuple[int, int] = (0, 1),
    ) -> Noisy:  # fmt: skip
        """Mask a batch at stratified times, or all of it; twice the batch where masks are complementary.

        With complementary masks a sample's two copies mask every token once between them, so neither copy alone is made
        to have one.
        """
        t = sample_t(len(x0), settings.sampling_eps, generator, part)
        t = all_masked_times(t, maps.state, settings.all_masked, generator)
        first = corrupt(
            x0, maps.maskable, maps.hidden, t, self.schedule, self.vocab.mask_id, generator,
            at_least_one=not settings.complementary,
        )  # fmt: skip
        first = cover(first, maps.covered, self.schedule, self.vocab.mask_id)
        if not settings.complementary:
            return first
        return join(first, complement(first, maps.hidden, self.schedule, self.vocab.mask_id))

    def loss(
        self, batch: TokenBatch, settings: LossSettings, generator: torch.Generator, ranks: Ranks = ALONE
    ) -> Nelbo:
        """The training objective of one batch (Eq. 6): states, masks, prediction, weighted cross-entropy.

        Several processes (`ranks`) draw the same masks and predict rows of their own: what each returns are its shares,
        over the tokens of the whole batch, and sum to what one process returns.

        Raises:
            ValueError: fewer rows than processes.
        """
        batch = batch.to(self.device)
        x0 = self.sequence(batch.text, batch.image)  # (B, L)
        state = assign_states(settings.states, len(x0), generator)
        report_tokens = batch.report_tokens(self.tokenizer.eos_id)
        maps = state_maps(
            state, batch.prompt_tokens, report_tokens, self.space, settings.prompt_keep, settings.length_known,
            settings.cut, settings.condition_dropout, generator,
        )  # fmt: skip
        noisy = self.noisy(x0, maps, settings, generator, batch.part)
        rows = ranks.rows(len(noisy.xt))
        logits = self(noisy.xt[rows], noisy.t[rows], noisy.masked[rows])
        return nelbo(
            logits, of_rows(noisy, rows), self.space, weighting=settings.weighting, cap=settings.cap,
            text_weight=settings.text_weight, image_weight=settings.image_weight,
        )  # fmt: skip

    def save(self, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
        """Write config.json, model.safetensors and the tokenizer's files; `extra` joins the config.

        The VQGAN is not copied: it is an artefact of its own, given again where pictures are decoded. Where weights are
        sharded (medim.distributed) all processes must call it; the first one writes.
        """
        state = gathered(self.backbone.state_dict())
        if not current_ranks().first:
            return
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "system": "medim.questions",
            "codebook_size": self.vocab.n_image,
            "layout": asdict(self.layout),
            "backbone": self.backbone.settings.to_dict(),
            "noise": self.noise,
        } | dict(extra or {})
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        self.tokenizer.save(folder)
        save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model that `save` wrote, in eval mode on the CPU.

        Raises:
            FileNotFoundError: a file is missing; names the stage that writes it.
            ValueError: its settings are those of another version.
        """
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing: run `dvc repro {cls.stage}`")
        config = json.loads((folder / "config.json").read_text())
        model = cls(
            TextTokenizer.load(folder), config["codebook_size"], SequenceLayout(**config["layout"]),
            cls._recipe_of(config["backbone"], folder), config["noise"],
        )  # fmt: skip
        model.backbone.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()

    @classmethod
    def _recipe_of(cls, saved: Mapping[str, Any], folder: Path) -> BackboneRecipe:
        known = set(inspect.signature(cls.recipe).parameters)
        if known != set(saved):
            raise ValueError(
                f"{folder / 'config.json'} was written by another version: its backbone lacks "
                f"{sorted(known - set(saved))} and has {sorted(set(saved) - known)}, which this one does not know. "
                f"Run `dvc repro {cls.stage}`, or load it with the commit that wrote it"
            )
        return cls.recipe(**saved)


def load_medim(folder: Path) -> MeDiM:
    """See `MeDiM.load`."""
    return MeDiM.load(folder)
