"""R2Gen (Chen et al. 2020): a transformer with a relational memory writes the report of a picture.

Follows cuhksz-nlp/R2Gen; see r2gen_network.py, report_decoder.py, visual_extractor.py, report_words.py, beam_search.py.
Differs:
- the residual network begins from ImageNet (`start`, as published) or from this very method's training on which report
  belongs to which picture (`pretraining`), of which nothing else is kept.
- trained by `fit` like every other row (AdamW, cosine, clipped norm, averaged weights), where the published one has
  Adam with amsgrad, a step schedule and half the learning rate for the residual network: all rows are
  given the same care. The last weights are kept, not those of the best test score.
- the residual network can stand still, its statistics too (`frozen`): in short trainings the writer's loss makes it
  forget what it saw (docs/study.md).
- no left-right flips, which the published training has though reports name sides; no random crops.
- full stops, decimals and the prompt are kept (`cleaning: plain`), references are never cut.
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
from medim.baselines.r2gen_network import R2GenNetwork, R2GenSizes
from medim.baselines.report_writer import WriterSystem


@dataclass(frozen=True)
class R2GenSettings(EncoderDecoderSettings):
    """params.yaml:train_baseline.settings.r2gen."""

    network: R2GenSizes


def train(inputs: TrainInputs) -> Trained:
    """See `Method` and `train_encoder_decoder`."""
    return train_encoder_decoder(inputs, R2GenSettings, R2GenNetwork, "r2gen")


def load_system(folder: Path, **_: object) -> WriterSystem:
    """The trained writer in a folder."""
    return load_encoder_decoder(folder, R2GenSizes, R2GenNetwork, METHOD.label)


METHOD = Method("r2gen", "R2Gen", "MED", "arXiv:2010.16056, cuhksz-nlp/R2Gen", train)
