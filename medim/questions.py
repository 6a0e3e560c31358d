"""The questions that a trained MeDiM answers: special cases of one sampler, told apart by which tokens are given.

    report_to_image   the report is given, the picture is sampled
    image_to_report   the picture is given, the report is sampled
    joint             nothing is given: every report token and code starts as [MASK] (the official code leaves 0-5 %)
    prompted          the prompt begins the report, the rest and the picture are sampled
    complete_report   a begun report is finished, with or without a picture
    fill_picture      erased codes are sampled anew

Every function is batched, takes one seed per sample, and a sample depends on its own seed only. With
`sampler.candidates` K each is answered K times, and the answer whose picture and report agree best is kept; with
`sampler.draws` and `text_beams` the towers have a say at every step.

Letters: B batch, T report tokens, n codes, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medim.diffusion.sampler import SampleResult, SamplerSettings, sample, seeded_generators
from medim.likelihood import mask_draws, report_log_p
from medim.model import MeDiM
from medim.pairs import PROMPT_END, Pair, full_text, load_images, split_prompt
from medim.precision import use_bf16
from medim.systems import TASKS, Sample
from medim.tokenizers.vqgan import VQGAN, load_vqgan, to_pixels, to_unit
from medim.training import step_seed

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Answers:
    """B finished pairs. `texts` are "<prompt>: <report>" as the models see them."""

    texts: list[str]
    codes: Tensor  # (B, n) int64
    images: Images  # (B, S, S, 3) uint8, decoded from the codes
    evaluations: list[int]  # passes through the network per sample

    @property
    def prompts(self) -> list[str]:
        """The part of each text before PROMPT_END."""
        return [split_prompt(text)[0] for text in self.texts]

    @property
    def reports(self) -> list[str]:
        """The part of each text after PROMPT_END."""
        return [split_prompt(text)[1] for text in self.texts]


class Questions:
    """A trained model with the VQGAN of its codes; implements `medim.systems.System` and `ReportLikelihood`."""

    tasks = TASKS
    row = "MeDiM"

    def __init__(
        self, model: MeDiM, vqgan: VQGAN, settings: SamplerSettings,
        settings_of: Mapping[str, SamplerSettings] | None = None,
    ) -> None:  # fmt: skip
        """Both go to eval mode. `settings_of`: task -> the sampler that `generate` takes for it, where another one.

        Raises:
            ValueError: the VQGAN's codebook is not the model's, or answers or draws are to be ranked without towers.
        """
        asked = [settings, *(settings_of or {}).values()]
        ranks = any(sampler.candidates > 1 or sampler.asks_value for sampler in asked)
        if ranks and model.backbone.towers is None:
            raise ValueError(
                "sampler.candidates, draws and agreement_weight rank by the model's towers, this one has none: set the "
                "first two to 1, the weight to 0 (params.yaml)"
            )
        if vqgan.codebook_size != model.vocab.n_image:
            raise ValueError(
                f"the model knows {model.vocab.n_image} codes, the VQGAN has {vqgan.codebook_size}: "
                f"rerun `dvc repro tokenize_pairs {model.stage}`"
            )
        self.model, self.vqgan, self.settings = model.eval(), vqgan.eval(), settings
        self.settings_of = dict(settings_of or {})

    def report_to_image(self, texts: Sequence[str], seeds: Sequence[int]) -> Answers:
        """Pictures of "<prompt>: <report>" texts."""
        return self._answer(self.text_ids(texts), None, seeds)

    def image_to_report(self, pictures: Tensor | Images, seeds: Sequence[int]) -> Answers:
        """Texts of pictures: codes (B, n) int64, or images (B, S, S, 3) uint8."""
        return self._answer(None, self.codes_of(pictures), seeds)

    def joint(self, seeds: Sequence[int]) -> Answers:
        """Pairs from nothing."""
        return self._answer(None, None, seeds)

    def prompted(self, prompts: Sequence[str], seeds: Sequence[int]) -> Answers:
        """Pairs that begin with a prompt such as "chest x-ray, left lung, pneumothorax" (PROMPT_END is added)."""
        begun = [prompt.removesuffix(PROMPT_END) + PROMPT_END for prompt in prompts]
        return self._answer(self.begun_ids(begun), None, seeds)

    def complete_report(
        self, begun: Sequence[str], seeds: Sequence[int], pictures: Tensor | Images | None = None
    ) -> Answers:
        """Texts with the given beginnings; with `pictures` None the picture is sampled too."""
        return self._answer(self.begun_ids(begun), None if pictures is None else self.codes_of(pictures), seeds)

    def fill_picture(
        self, pictures: Tensor | Images, erased: Tensor, texts: Sequence[str] | None, seeds: Sequence[int]
    ) -> Answers:
        """Sample the `erased` (B, n) bool codes of pictures anew; `texts` None: the report is sampled too."""
        codes = self.codes_of(pictures)
        x = self.model.sequence(None if texts is None else self.text_ids(texts), codes)
        image = x[:, self.model.layout.image]
        x[:, self.model.layout.image] = torch.where(erased.to(x.device), self.model.vocab.mask_id, image)
        return self._finish(x, seeds)

    def report_log_p(
        self, texts: Sequence[str], pictures: Tensor | Images | None, seeds: Sequence[int], masks: int, rows: int
    ) -> NDArray[np.float64]:
        """See `medim.systems.ReportLikelihood` and `medim.likelihood`."""
        x = self.model.sequence(self.text_ids(texts), None if pictures is None else self.codes_of(pictures))
        draws = mask_draws(seeds, masks, self.model.layout.n_text)
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(self.settings.precision, device)):
            found = report_log_p(self.model, x, draws, self.model.space, self.model.schedule, rows)
        return np.asarray(found.cpu().numpy(), dtype=np.float64)

    def text_ids(self, texts: Sequence[str]) -> Tensor:
        """(B, T) report ids of whole texts, EOS to the end."""
        length = self.model.layout.n_text
        return torch.tensor([self.model.tokenizer.encode(t, length) for t in texts], device=self.model.device)

    def begun_ids(self, texts: Sequence[str]) -> Tensor:
        """(B, T) report ids of beginnings, [MASK] to the end."""
        length, mask = self.model.layout.n_text, self.model.vocab.mask_id
        rows = []
        for text in texts:
            num = min(self.model.tokenizer.num_tokens(text), length - 1)
            rows.append(self.model.tokenizer.encode(text, length)[:num] + [mask] * (length - num))
        return torch.tensor(rows, device=self.model.device)

    def codes_of(self, pictures: Tensor | Images) -> Tensor:
        """Codes (B, n) of images (B, S, S, 3) uint8; codes as they are."""
        if isinstance(pictures, Tensor):
            return pictures.to(self.model.device)
        images = to_unit(torch.from_numpy(pictures).to(next(self.vqgan.parameters()).device))
        return self.vqgan.encode(images).to(self.model.device)

    def _answer(self, text: Tensor | None, codes: Tensor | None, seeds: Sequence[int]) -> Answers:
        return self._finish(self.model.sequence(text, codes, len(seeds)), seeds)

    def _finish(self, x: Tensor, seeds: Sequence[int]) -> Answers:
        """Fill the [MASK] of x (B, L) and read the pairs."""
        filled, evaluations = self._fill(x, seeds)
        if self.settings.candidates > 1:
            filled, evaluations = self._best(x, seeds, filled, evaluations)
        layout = self.model.layout
        codes = self.model.vocab.to_codes(filled[:, layout.image])
        images = to_pixels(self.vqgan.decode(codes.to(next(self.vqgan.parameters()).device))).cpu().numpy()
        texts = [self.model.tokenizer.decode(row) for row in filled[:, layout.text].tolist()]
        return Answers(texts, codes, images, evaluations.tolist())

    def _fill(self, x: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Finished ids (B, L) and evaluations (B,)."""
        device = self.model.device
        towers = self.model.backbone.towers if self.settings.asks_value else None
        with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(self.settings.precision, device)):
            result: SampleResult = sample(
                self.model,
                x,
                self.model.space,
                self.settings,
                seeded_generators(seeds),
                self.model.schedule,
                value=None if towers is None else towers.log_odds,
            )
        return result.x, result.num_evaluations

    def _best(self, x: Tensor, seeds: Sequence[int], first: Tensor, evaluations: Tensor) -> tuple[Tensor, Tensor]:
        """The finished ids that agree best among `first` and the other candidates; evaluations of all of them."""
        towers = self.model.backbone.towers
        assert towers is not None
        best, agreement = first, towers.agreement(first)
        for number in range(1, self.settings.candidates):
            filled, more = self._fill(x, [step_seed(seed, number) for seed in seeds])
            agrees = towers.agreement(filled)
            better = agrees > agreement
            best, agreement = torch.where(better[:, None], filled, best), torch.where(better, agrees, agreement)
            evaluations = evaluations + more
        return best, evaluations

    def generate(self, task: str, dataset: str, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Sample]:
        """See `medim.systems.System`.

        Raises:
            ValueError: unknown task.
        """
        asked = Questions(self.model, self.vqgan, self.settings_of.get(task, self.settings))
        if task == "report_to_image":
            answers = asked.report_to_image([full_text(p.prompt, p.report) for p in pairs], seeds)
        elif task == "image_to_report":
            answers = asked.image_to_report(load_images(pairs), seeds)
        elif task == "joint":
            answers = asked.joint(seeds)
        else:
            raise ValueError(f"no task {task!r}: there are {', '.join(TASKS)} (params.yaml:generate.tasks)")
        wants_image, wants_report = task != "image_to_report", task != "report_to_image"
        return [
            Sample(
                row=self.row, task=task, dataset=dataset, pair_id=f"joint-{seed}" if task == "joint" else pair.pair_id,
                seed=seed, image=answers.images[i] if wants_image else None,
                prompt=answers.prompts[i] if wants_report else pair.prompt,
                report=answers.reports[i] if wants_report else None, evaluations=answers.evaluations[i],
            )
            for i, (pair, seed) in enumerate(zip(pairs, seeds, strict=True))
        ]  # fmt: skip


def load_system(
    folder: Path, *, vqgan: Path, sampler: SamplerSettings, device: torch.device,
    sampler_of: Mapping[str, SamplerSettings] | None = None,
) -> Questions:  # fmt: skip
    """The trained model in `folder` with the VQGAN in `vqgan`, ready to be asked; `sampler_of`: see `Questions`."""
    return Questions(MeDiM.load(folder).to(device), load_vqgan(vqgan).to(device), sampler, sampler_of)
