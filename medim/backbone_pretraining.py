"""The prior: the backbone's decoder trained autoregressively on captioned pictures, both ways round.

Stands for the pretrained MLLM of the paper (Liquid: Gemma trained by next-token prediction on text and image codes in
one sequence, in both orders, Wu et al. 2024). The decoder, its tokenizers and its vocabulary are `train_medim`'s, so
that everything but AdaLN and time carries over; attention is causal and time is absent.

    picture to caption   BOI | picture | EOI | caption
    caption to picture   caption | BOI | picture | EOI

With a `code_stem` (backbones/code_stem.py) a picture that stands first is seen whole, by the stem and by attention both
ways within it, so only its caption is learned.

Letters: B batch, L positions, T caption tokens, n codes of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medim.backbones.mllm import MLLM, BackboneSettings, check_decoder_keys
from medim.medim_training import TokenData, Tokens, balanced_batches
from medim.model import TokenBatch
from medim.pretrained import OWN_FOLDER
from medim.tokenizers.text import TextTokenizer
from medim.training import FitResult, OnLog, Optimisation, fit
from medim.vocab import SequenceLayout, SharedVocab


@dataclass(frozen=True)
class PretrainingSettings:
    """The decoder is `backbone`'s; its switches for diffusion (attention, time, AdaLN, towers, refiner) are unread."""

    backbone: BackboneSettings
    caption_first: float  # share of the batch in the order caption, picture
    text_weight: float
    image_weight: float
    val_pairs: int

    def __post_init__(self) -> None:
        """Check that codes can be learned.

        Raises:
            ValueError: they have a weight, but every picture stands first and is seen whole by the stem.
        """
        if self.backbone.code_stem and self.image_weight and not self.caption_first:
            raise ValueError(
                "pretrain_backbone.caption_first is 0 and code_stem is not: no codes are learned. Raise caption_first "
                "or set image_weight to 0 (params.yaml)"
            )


def as_prior(backbone: BackboneSettings) -> BackboneSettings:
    """A backbone without what diffusion adds to its decoder: two that differ in nothing else have the same prior."""
    return replace(
        backbone, causal=True, timestep="none", adaln="none", adaln_init="identity", adaln_silu=True, towers=None,
        code_refiner=None,
    )  # fmt: skip


class CausalDecoder(nn.Module):
    """The backbone as an autoregressive model over both orders."""

    def __init__(
        self, tokenizer: TextTokenizer, codebook_size: int, layout: SequenceLayout, backbone: BackboneSettings
    ) -> None:
        super().__init__()
        self.tokenizer, self.layout = tokenizer, layout
        self.vocab = SharedVocab(tokenizer.size, codebook_size)
        self.backbone = MLLM(self.vocab, layout, as_prior(backbone))

    def learned(self, batch: TokenBatch, caption_first: Tensor) -> Tensor:
        """(B, L) bool, in the layout's order: codes, and the caption up to its first EOS.

        A first caption token that has nothing before it is not learned, nor are codes that the stem sees whole.
        """
        is_eos = (batch.text == self.tokenizer.eos_id).long()
        caption = is_eos.cumsum(1) - is_eos == 0  # the first EOS is learned
        caption[:, 0] &= ~caption_first
        learned = torch.zeros(len(caption), self.layout.length, dtype=torch.bool, device=caption.device)
        codes = caption_first[:, None] if self.backbone.stem is not None else torch.ones_like(caption_first)[:, None]
        learned[:, self.layout.text], learned[:, self.layout.image] = caption, codes
        return learned

    def nats(self, batch: TokenBatch, caption_first: Tensor) -> tuple[Tensor, Tensor]:
        """Mean next-token cross-entropy of captions and of pictures, nats per token; 0 where nothing is learned.

        Args:
            batch: B pairs.
            caption_first: (B,) bool, samples in the order caption, picture.
        """
        edge = torch.ones(len(batch.text), 1, dtype=torch.int64, device=batch.text.device)
        codes = self.vocab.from_codes(batch.image)
        ids = torch.cat([edge * self.tokenizer.boi_id, codes, edge * self.tokenizer.eoi_id, batch.text], dim=1)
        learned = self.learned(batch, caption_first)
        logits = self.backbone.logits_at(self.backbone.before(ids, caption_first), learned)
        text, image = self.layout.text, self.layout.image
        return _mean_nats(logits.text, ids[:, text][learned[:, text]]), _mean_nats(
            logits.image, batch.image[learned[:, image]]
        )

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors (embedding, blocks, norm, head) and the tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "made_by": OWN_FOLDER, "codebook_size": self.vocab.n_image, "layout": asdict(self.layout),
            "backbone": self.backbone.settings.to_dict(),
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        self.tokenizer.save(folder)
        state = {name: p.detach().contiguous() for name, p in self.backbone.decoder_parameters()}
        save_file(state, folder / "model.safetensors")


def _mean_nats(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits.float(), ids, reduction="sum") / max(1, len(ids))


class PretrainingTrainee:
    """The decoder as `fit` sees it."""

    def __init__(self, model: CausalDecoder, settings: PretrainingSettings) -> None:
        self.model, self.settings = model, settings

    def players(self) -> dict[str, nn.Module]:
        """See `Trainee`."""
        return {"backbone": self.model}

    def loss(
        self, _player: str, batch: TokenBatch, _step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Trainee`; the order is drawn per sample."""
        device = next(self.model.parameters()).device
        first = (torch.rand(len(batch.text), generator=generator) < self.settings.caption_first).to(device)
        text, image = self.model.nats(batch.to(device), first)
        logs = {"text": text} | ({"image": image} if self.model.backbone.stem is None or first.any() else {})
        return self.settings.text_weight * text + self.settings.image_weight * image, logs


@torch.no_grad()
def validation_nats(model: CausalDecoder, val: Mapping[str, Tokens], num: int, chunk: int) -> dict[str, float]:
    """`<dataset>/<order>/<modality>` -> nats per token of what is learned on the first `num` pairs (mean of chunks)."""
    device = next(model.parameters()).device
    out: dict[str, float] = {}
    for name, tokens in val.items():
        total = min(num, len(tokens))
        for order in ("picture_first", "caption_first"):
            parts = []
            for start in range(0, total, chunk):
                batch = tokens.batch(np.arange(start, min(start + chunk, total))).to(device)
                first = torch.full((len(batch.text),), order == "caption_first", device=device)
                parts.append([len(batch.text), *(float(v) * len(batch.text) for v in model.nats(batch, first))])
            pairs, text, image = np.sum(parts, axis=0)
            out[f"{name}/{order}/text"] = float(text / pairs)
            if order == "caption_first" or model.backbone.stem is None:
                out[f"{name}/{order}/image"] = float(image / pairs)
    return out


def pretrain_backbone(
    data: TokenData, settings: PretrainingSettings, optim: Optimisation, *, seed: int, work: Path, out: Path,
    on_log: OnLog, device: torch.device,
) -> FitResult:  # fmt: skip
    """Train and write the folder `out`, which `train_medim(pretrained=…)` reads.

    Args:
        data: tokens of captioned pictures; tokenizer and codebook must be those of `train_medim`.
    """
    check_decoder_keys(settings.backbone.decoder)
    torch.manual_seed(seed)
    tokenizer = TextTokenizer.load(data.tokenizer)
    model = CausalDecoder(tokenizer, data.codebook_size, data.layout(), settings.backbone)
    model.backbone.start_codes(data.codebook, torch.Generator().manual_seed(seed))
    model = model.to(device).train()
    chunk = max(1, optim.batch_size // optim.accumulate)

    def validate(module: nn.Module, _step: int) -> Mapping[str, float]:
        assert isinstance(module, CausalDecoder)
        return validation_nats(module, data.val, settings.val_pairs, chunk)

    result = fit(
        PretrainingTrainee(model, settings), balanced_batches(data.train, optim, seed), optim, seed=seed, work=work,
        name="pretrain_backbone", on_log=on_log, validate=validate if data.val else None,
    )  # fmt: skip
    assert isinstance(result.averaged, CausalDecoder)
    result.averaged.save(out)
    return result
