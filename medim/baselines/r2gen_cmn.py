"""R2GenCMN (Chen et al. 2021): a transformer whose patches and words ask one memory writes the report of a picture.

Follows zhjohnchan/R2GenCMN; see r2gen_cmn_network.py, report_decoder.py, visual_extractor.py, report_words.py,
beam_search.py.
Differs:
- trained by `fit` like every other row (AdamW, cosine, clipped norm, averaged weights), where the published one has
  Adam with amsgrad, a step schedule, no clipping and a fifth of the learning rate for the residual network: all rows
  are given the same care. The last weights are kept, not those of the best test score.
- no left-right flips, which the published training has though reports name sides; no random crops.
- full stops, decimals and the prompt are kept (`cleaning: plain`), references are never cut.
- masked scores are -1e9 as in R2Gen, where the published ones are minus infinity: the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medim.baselines.base import Method, TrainInputs
from medim.baselines.encoder_decoder_writer import EncoderDecoderWriter, train_encoder_decoder, writer_of_config
from medim.baselines.method_settings import read_settings
from medim.baselines.r2gen_cmn_network import CMNNetwork, CMNSizes
from medim.baselines.report_words import WordSettings
from medim.baselines.report_writer import WriterSystem, load_writer
from medim.baselines.visual_extractor import ExtractorSettings
from medim.training import Optimisation


@dataclass(frozen=True)
class R2GenCMNSettings:
    """params.yaml:train_baseline.settings.r2gen_cmn; see `EncoderDecoderSettings`."""

    extractor: ExtractorSettings
    network: CMNSizes
    words: WordSettings
    beams: int
    val_pairs: int
    optim: Optimisation


def train(inputs: TrainInputs) -> None:
    """See `Method`.

    Raises:
        ValueError: see `read_settings` and `new_writer`.
    """
    settings = read_settings(R2GenCMNSettings, inputs.settings, "params.yaml:train_baseline.settings.r2gen_cmn")
    train_encoder_decoder(
        inputs, settings, lambda features, ids: CMNNetwork(settings.network, features, ids), "r2gen_cmn"
    )


def _writer(config: Mapping[str, Any]) -> EncoderDecoderWriter:
    sizes = read_settings(CMNSizes, config["network"], "config.json:writer.network")
    return writer_of_config(config, lambda features, ids: CMNNetwork(sizes, features, ids))


def load_system(folder: Path, **_: object) -> WriterSystem:
    """The trained writer in a folder."""
    return WriterSystem(load_writer(folder, _writer), "R2GenCMN")


METHOD = Method("r2gen_cmn", "R2GenCMN", "MED", "arXiv:2204.13258, zhjohnchan/R2GenCMN", train)
