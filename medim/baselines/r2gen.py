"""R2Gen (Chen et al. 2020): a transformer with a relational memory writes the report of a picture.

Follows cuhksz-nlp/R2Gen; see r2gen_network.py, report_decoder.py, visual_extractor.py, report_words.py, beam_search.py.
Differs:
- trained by `fit` like every other row (AdamW, cosine, clipped norm, averaged weights), where the published one has
  Adam with amsgrad, a step schedule and half the learning rate for the residual network: all rows are
  given the same care. The last weights are kept, not those of the best test score.
- no left-right flips, which the published training has though reports name sides; no random crops.
- full stops, decimals and the prompt are kept (`cleaning: plain`), references are never cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medim.baselines.base import Method, TrainInputs
from medim.baselines.encoder_decoder_writer import EncoderDecoderWriter, train_encoder_decoder, writer_of_config
from medim.baselines.method_settings import read_settings
from medim.baselines.r2gen_network import R2GenNetwork, R2GenSizes
from medim.baselines.report_words import WordSettings
from medim.baselines.report_writer import WriterSystem, load_writer
from medim.baselines.visual_extractor import ExtractorSettings
from medim.training import Optimisation


@dataclass(frozen=True)
class R2GenSettings:
    """params.yaml:train_baseline.settings.r2gen; see `EncoderDecoderSettings`."""

    extractor: ExtractorSettings
    network: R2GenSizes
    words: WordSettings
    beams: int
    val_pairs: int
    optim: Optimisation


def train(inputs: TrainInputs) -> None:
    """See `Method`.

    Raises:
        ValueError: see `read_settings` and `new_writer`.
    """
    settings = read_settings(R2GenSettings, inputs.settings, "params.yaml:train_baseline.settings.r2gen")
    train_encoder_decoder(
        inputs, settings, lambda features, ids: R2GenNetwork(settings.network, features, ids), "r2gen"
    )


def _writer(config: Mapping[str, Any]) -> EncoderDecoderWriter:
    sizes = read_settings(R2GenSizes, config["network"], "config.json:writer.network")
    return writer_of_config(config, lambda features, ids: R2GenNetwork(sizes, features, ids))


def load_system(folder: Path, **_: object) -> WriterSystem:
    """The trained writer in a folder."""
    return WriterSystem(load_writer(folder, _writer), "R2Gen")


METHOD = Method("r2gen", "R2Gen", "MED", "arXiv:2010.16056, cuhksz-nlp/R2Gen", train)
