"""R2GenCMN (Chen et al. 2021): a transformer whose patches and words ask one memory writes the report of a picture.

Follows zhjohnchan/R2GenCMN; see r2gen_cmn_network.py, report_decoder.py, visual_extractor.py, report_words.py,
beam_search.py.
Differs:
- the residual network begins from ImageNet (`start`, as published) or from this very method's training on captioned
  pictures (`pretraining`), of which nothing else is kept.
- trained by `fit` like every other row (AdamW, cosine, clipped norm, averaged weights), where the published one has
  Adam with amsgrad, a step schedule, no clipping and a fifth of the learning rate for the residual network: all rows
  are given the same care. The last weights are kept, not those of the best test score.
- the residual network can stand still, its statistics too (`frozen`), see r2gen.py.
- no left-right flips, which the published training has though reports name sides; no random crops.
- full stops, decimals and the prompt are kept (`cleaning: plain`), references are never cut.
- masked scores are -1e9 as in R2Gen, where the published ones are minus infinity: the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medim.baselines.base import Method, Trained, TrainInputs
from medim.baselines.encoder_decoder_writer import (
    EncoderDecoderSettings,
    load_encoder_decoder,
    train_encoder_decoder,
)
from medim.baselines.r2gen_cmn_network import CMNNetwork, CMNSizes
from medim.baselines.report_writer import WriterSystem


@dataclass(frozen=True)
class R2GenCMNSettings(EncoderDecoderSettings):
    """params.yaml:train_baseline.settings.r2gen_cmn."""

    network: CMNSizes


def train(inputs: TrainInputs) -> Trained:
    """See `Method` and `train_encoder_decoder`."""
    return train_encoder_decoder(inputs, R2GenCMNSettings, CMNNetwork, "r2gen_cmn")


def load_system(folder: Path, **_: object) -> WriterSystem:
    """The trained writer in a folder."""
    return load_encoder_decoder(folder, CMNSizes, CMNNetwork, METHOD.label)


METHOD = Method("r2gen_cmn", "R2GenCMN", "MED", "arXiv:2204.13258, zhjohnchan/R2GenCMN", train)
