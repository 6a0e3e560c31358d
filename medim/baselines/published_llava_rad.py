"""The released LLaVA-Rad (huggingface.co/microsoft/llava-rad) as weights of LlavaForConditionalGeneration.

    file                                  names                                        part here
    biomedclipcxr_518_checkpoint.pt       visual.trunk.<timm's DINOv2 names>           vision tower (`vit`)
    mm_projector.bin or                   …mm_projector.0, …mm_projector.2             linear_1 and linear_2
      non_lora_trainables.bin
    adapter_model.*, adapter_config.json  base_model.model.<Vicuna's name>.lora_A/B    added to Vicuna's weights
    Vicuna-7B v1.5, Hugging Face folder   model.*, lm_head.weight                      language model and head

The tower is timm's vit_base_patch14_dinov2 at 518 pixels (the checkpoint's configuration says so): a plain vision
transformer but for LayerScale, which is multiplied into the maps before it (tower_names.py). LoRA is merged:
W + (alpha / rank) B A.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from medim.baselines.tower_names import from_timm, resized_positions
from medim.baselines.weight_files import read_weights, under

TRUNK = "visual.trunk."
MASK_TOKEN = "mask_token"  # of DINOv2's pretraining
POSITIONS = "embeddings.position_embeddings"
PROJECTOR = {"0": "linear_1", "2": "linear_2"}
COUNTED = ".rotary_emb.inv_freq"  # a buffer in older files
LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Adapter:
    """The released LoRA: name of a map -> (A (rank, in), B (out, rank)), and alpha / rank."""

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    scale: float


def vision_state(published: Mapping[str, Tensor], patches: int) -> dict[str, Tensor]:
    """The checkpoint of BiomedCLIP-CXR -> a `vit` for pictures of `patches` patches; its text side is left out.

    Raises:
        ValueError: it holds no `visual.trunk.*`, or a name that a vision transformer does not have.
    """
    trunk = {name: value for name, value in under(published, TRUNK).items() if name != MASK_TOKEN}
    if not trunk:
        raise ValueError(f"no {TRUNK}* among {sorted(published)[:3]}…: is it biomedclipcxr_518_checkpoint.pt?")
    state = from_timm("vit", trunk)
    state[POSITIONS] = resized_positions(state[POSITIONS], patches)
    return state


def projector_state(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mlp2x_gelu, whatever stands before its names -> linear_1, linear_2.

    Raises:
        ValueError: no projector of two maps is there.
    """
    found = [(re.fullmatch(r"(?:.*\.)?mm_projector\.([02])\.(weight|bias)", n), v) for n, v in published.items()]
    state = {f"{PROJECTOR[m[1]]}.{m[2]}": value for m, value in found if m}
    if len(state) != 2 * len(PROJECTOR):
        raise ValueError(f"no mm_projector.0 and mm_projector.2 among {sorted(published)[:4]}…: is it LLaVA-Rad's?")
    return state


def adapter_of(published: Mapping[str, Tensor], config: Mapping[str, float]) -> Adapter:
    """LoRA matrices with `r` and `lora_alpha` of adapter_config.json.

    Raises:
        ValueError: a name that is none of LoRA's, or an A without its B.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in published.items():
        match = LORA.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no lora_A or lora_B of a map")
        halves.setdefault(match[1], {})[match[2]] = value
    single = [name for name, pair in halves.items() if len(pair) != 2]
    if single:
        raise ValueError(f"lora_A or lora_B is missing for {single[:3]}")
    return Adapter({n: (pair["A"], pair["B"]) for n, pair in halves.items()}, config["lora_alpha"] / config["r"])


def language_state(vicuna: Mapping[str, Tensor], adapter: Adapter | None) -> dict[str, Tensor]:
    """Vicuna's weights by their own names, in float32, with the adapter merged in.

    Raises:
        ValueError: the adapter changes a map that is not there, or of another shape.
    """
    state = {name: value.float() for name, value in vicuna.items() if not name.endswith(COUNTED)}
    for name, (down, up) in (adapter.pairs if adapter else {}).items():
        assert adapter is not None
        weight = state.get(f"{name}.weight")
        if weight is None or weight.shape != (up.shape[0], down.shape[1]):
            raise ValueError(f"the adapter's {name} does not fit the language model: another base than Vicuna-7B v1.5?")
        state[f"{name}.weight"] = weight + adapter.scale * up.float() @ down.float()
    return state


def read_release(folder: Path) -> tuple[dict[str, Tensor], Adapter | None]:
    """The projector, and the adapter if there is one, in a folder of the release.

    Raises:
        FileNotFoundError: no projector is there.
    """
    names = ("non_lora_trainables.bin", "mm_projector.bin")
    files = [folder / name for name in names if (folder / name).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(names)}: place LLaVA-Rad's files there")
    adapters = sorted(folder.glob("adapter_model.*"))
    if not adapters:
        return projector_state(read_weights(files[0])), None
    config = json.loads((folder / "adapter_config.json").read_text())
    return projector_state(read_weights(files[0])), adapter_of(read_weights(adapters[0]), config)
