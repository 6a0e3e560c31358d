"""UniDisc (Swerdlow et al. 2025, arXiv:2503.20853; alexanderswerdlow/unidisc): one masked diffusion over report and
picture with a network of its own, trained from nothing. A row of the tables.

Vocabulary, layout, tokens, masks, sampler and questions are MeDiM's; what differs is UniDisc's:

- the network, see medim/backbones/unidisc.py; time is not told;
- the objective: log-linear noise, a token's weight min-SNR-like and at most 5 (`softmin_cap`: 1 / (t + (1 - t) / 5);
  the public code's dσ / (e^σ - 1 + 1 / 5) differs by its eps, 0.1 %), a code weighs 0.6 of a report token;
- in some samples a whole modality is masked and the other one clean (`mask_entire_modality` 0.15: each with 0.15 / 2,
  not both, so 0.069375 each), weighed as the drawn time says, see `UniDisc.noisy`;
- no states without condition, no dropped conditions: what guidance subtracts is seen as part of the joint state only;
- sampling by confidence: params.yaml:generate.sampler_of_model.unidisc.

Different from the public code: reports end in EOS tokens that are predicted (it leaves padding out of the loss), times
stand in random order within a batch, rows without a masked token are not drawn (medim.diffusion.absorbing keeps that
unbiased), and the divisor of the mean counts the tokens that may be masked, weighed, not all tokens: nearly a constant
factor. `pretraining` is ours: first steps on captioned pictures, which is what MeDiM's decoder begins with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medim.backbones.unidisc import UniDiscSettings
from medim.baselines.base import Method, Trained, TrainInputs
from medim.baselines.method_settings import read_settings
from medim.baselines.pretraining import PRETRAINING, Pretraining, log_apart, pairs_seen
from medim.diffusion.absorbing import Noisy, sample_t
from medim.diffusion.sampler import SamplerSettings
from medim.diffusion.schedule import get_schedule, nelbo_weight
from medim.diffusion.states import StateMaps
from medim.medim_training import TokenData, read_tokens, train_denoiser
from medim.model import LossSettings, MeDiM
from medim.questions import Questions
from medim.tokenizers.text import TextTokenizer
from medim.tokenizers.vqgan import load_vqgan
from medim.training import Optimisation

PLACE = "params.yaml:train_baseline.settings.unidisc"


@dataclass(frozen=True)
class UniDiscTraining:
    """params.yaml:train_baseline.settings.unidisc."""

    backbone: UniDiscSettings
    noise: str  # see medim.diffusion.schedule
    loss: LossSettings
    val_pairs: int  # validation pairs per dataset
    pretraining: Pretraining | None  # None: from nothing, as published
    optim: Optimisation

    def __post_init__(self) -> None:
        """Check the name of the noise schedule and the number of pairs.

        Raises:
            ValueError: see `get_schedule`; or no validation pairs.
        """
        get_schedule(self.noise)
        if self.val_pairs < 1:
            raise ValueError(f"val_pairs must be at least 1, got {self.val_pairs}")

    def objective(self, step: int) -> LossSettings:
        """The same at every step; see `medim.medim_training.Training`."""
        return self.loss


class UniDisc(MeDiM):
    """The masked diffusion with UniDisc's network; see the head of this file."""

    recipe = UniDiscSettings
    stage = "train_baseline@unidisc"

    def noisy(
        self, x0: Tensor, maps: StateMaps, settings: LossSettings, generator: torch.Generator,
        part: tuple[int, int] = (0, 1),
    ) -> Noisy:  # fmt: skip
        """See `MeDiM.noisy`. Samples of `settings.all_masked` lose every token of the answer, not all but one in 1,000
        as at time 1, and are weighed as a time says that has nothing to do with it (public model.py, q_xt)."""
        noisy = super().noisy(x0, maps, settings, generator, part)
        if not any(settings.all_masked.values()):
            return noisy
        whole = noisy.t == 1
        t = sample_t(len(whole), settings.sampling_eps, generator).to(x0.device)
        masked = noisy.masked | (noisy.maskable & whole[:, None])
        return noisy._replace(
            xt=torch.where(masked, self.vocab.mask_id, noisy.xt),
            t=torch.where(whole, t.float(), noisy.t),
            weight=torch.where(whole, nelbo_weight(self.schedule, t), noisy.weight),
            chance=torch.where(whole, 1.0, noisy.chance),
            masked=masked,
        )

    def save(self, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
        """See `MeDiM.save`."""
        super().save(folder, {"system": "medim.baselines.unidisc"} | dict(extra or {}))


class UniDiscAnswers(Questions):
    """A trained UniDisc; implements `medim.systems.System` and `ReportLikelihood`."""

    row = "UniDisc"


def build_unidisc(data: TokenData, settings: UniDiscTraining, seed: int) -> UniDisc:
    """A model of the data's vocabulary and layout, initialised from `seed`."""
    torch.manual_seed(seed)
    tokenizer = TextTokenizer.load(data.tokenizer)
    model = UniDisc(tokenizer, data.codebook_size, data.layout(), settings.backbone, settings.noise)
    model.backbone.start_codes(data.codebook, torch.Generator().manual_seed(seed))
    return model


def train(inputs: TrainInputs) -> Trained:
    """Train on the token pairs of `inputs.datasets` and write the folder (averaged weights).

    Raises:
        ValueError: wrong settings, or tokens, tokenizer or VQGAN are not given.
    """
    settings = read_settings(UniDiscTraining, inputs.settings, PLACE)
    data = _token_data(inputs, inputs.datasets, settings.val_pairs)
    model = build_unidisc(data, settings, inputs.seed)
    before = settings.pretraining
    if before is not None:
        first = train_denoiser(
            model, _token_data(inputs, before.datasets, settings.val_pairs), settings, before.optim, seed=inputs.seed,
            work=inputs.work / PRETRAINING, on_log=log_apart(inputs.on_log), player="unidisc", device=inputs.device,
        ).averaged  # fmt: skip
        assert isinstance(first, UniDisc)
        model = first
    result = train_denoiser(
        model, data, settings, settings.optim, seed=inputs.seed, work=inputs.work / "training", on_log=inputs.on_log,
        player="unidisc", device=inputs.device,
    ).averaged  # fmt: skip
    assert isinstance(result, UniDisc)
    result.save(inputs.out)
    parameters = sum(value.numel() for value in result.parameters())
    return Trained(parameters, pairs_seen(settings.optim), 0 if before is None else pairs_seen(before.optim))


def _token_data(inputs: TrainInputs, datasets: Sequence[str], val_pairs: int) -> TokenData:
    if inputs.tokenizer is None or inputs.vqgan is None:
        raise ValueError("unidisc needs TrainInputs.tokenizer and .vqgan: the stage train_baseline gives both")
    for name in datasets:
        if name not in inputs.tokens:
            known = ", ".join(sorted(inputs.tokens))
            raise ValueError(
                f"unidisc learns from {name!r}, which has no tokens (there are {known}): add it to "
                f"params.yaml:tokenize_pairs.datasets and run `dvc repro tokenize_pairs`"
            )
    pairs = {name: read_tokens(inputs.tokens[name]["train"]) for name in datasets}
    val = {name: read_tokens(inputs.tokens[name]["val"], val_pairs) for name in datasets}
    return TokenData(pairs, val, inputs.tokenizer, load_vqgan(inputs.vqgan).quantize.weight)


def load_system(
    folder: Path, *, vqgan: Path, sampler: SamplerSettings, device: torch.device,
    sampler_of: Mapping[str, SamplerSettings] | None = None,
) -> UniDiscAnswers:  # fmt: skip
    """The trained model in `folder` with the VQGAN in `vqgan`; `sampler_of`: see `Questions`."""
    return UniDiscAnswers(UniDisc.load(folder).to(device), load_vqgan(vqgan).to(device), sampler, sampler_of)


METHOD = Method("unidisc", "UniDisc", "DDM", "Swerdlow et al. 2025, arXiv:2503.20853, alexanderswerdlow/unidisc", train)
