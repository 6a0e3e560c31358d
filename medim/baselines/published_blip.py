"""The released BLIP (salesforce/BLIP, model_base*.pth) as weights of transformers' BlipForConditionalGeneration.

    released                              here
    visual_encoder.<timm's names>         vision_model.<names of blip_vision_model>
    text_decoder.bert.*, .cls.*           the same

The text encoder, the momentum copies, the projections and the queues of the pretraining have no part in captioning.
Positions of another picture size are resized as in its models/vit.py. Head and word embedding are one weight in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from medim.baselines.tower_names import from_timm, resized_positions
from medim.baselines.weight_files import fill, read_weights, under

VISION, DECODER = "visual_encoder.", "text_decoder."
POSITIONS = "embeddings.position_embedding"
COUNTED = "bert.embeddings.position_ids"  # 0, 1, 2, … as a buffer
HEAD, WORDS = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"


def blip_state(published: Mapping[str, Tensor], patches: int) -> dict[str, Tensor]:
    """Released names -> ours, for pictures of `patches` patches.

    Raises:
        ValueError: one of the two parts is missing, or a name is none of a vision transformer.
    """
    vision, decoder = under(published, VISION), under(published, DECODER)
    if not vision or not decoder:
        raise ValueError(f"no {VISION}* or no {DECODER}* among {sorted(published)[:3]}…: is it a released BLIP?")
    state = from_timm("blip_vision_model", vision)
    state[POSITIONS] = resized_positions(state[POSITIONS], patches)
    decoder.pop(COUNTED, None)
    return {f"vision_model.{n}": v for n, v in state.items()} | {f"{DECODER}{n}": v for n, v in decoder.items()}


def load_released_blip(network: nn.Module, path: Path) -> int:
    """Fill a BlipForConditionalGeneration from a released file; returns the number of tensors.

    Raises:
        FileNotFoundError, ValueError: see `read_weights`, `blip_state` and `fill`; or the head is not the embedding.
    """
    published = read_weights(path)
    head, words = (published.get(f"{DECODER}{name}") for name in (HEAD, WORDS))
    if head is not None and words is not None and not torch.equal(head, words):
        raise ValueError(f"{path}: {DECODER}{HEAD} is not {DECODER}{WORDS}, which BLIP ties: another model?")
    patches = network.get_parameter(f"vision_model.{POSITIONS}").shape[1] - 1
    return fill(network, blip_state(published, patches), str(path))
