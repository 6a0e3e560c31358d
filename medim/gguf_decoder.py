"""A Llama decoder out of a GGUF file: dequantised, renamed, rotary pairs put back in Hugging Face's order.

Follows llama.cpp's convert_hf_to_gguf.py (LlamaModel.permute, gguf-py tensor names) in reverse. transformers'
`from_pretrained(gguf_file=…)` gives the same numbers, but wants the package accelerate and the whole model in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}

Weights = dict[str, Callable[[], Tensor]]


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """(heads · C, D): rows of a head from llama.cpp's interleaved rotary pairs to Hugging Face's two halves."""
    return weight.view(heads, weight.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `layers.3.self_attn.q_proj.weight`.

    Raises:
        ValueError: the tensor belongs to no plain Llama decoder.
    """
    parts = name.split(".")
    if parts[0] == "blk" and len(parts) == 4 and parts[2] in BLOCK_NAMES:
        return f"layers.{parts[1]}.{BLOCK_NAMES[parts[2]]}.{parts[3]}"
    if parts[0] in OTHER_NAMES and len(parts) == 2:
        return f"{OTHER_NAMES[parts[0]]}.{parts[1]}"
    raise ValueError(f"GGUF tensor {name!r} belongs to no plain Llama decoder: use a Hugging Face folder instead")


def read_gguf(path: Path) -> tuple[dict[str, Any], Weights, list[str]]:
    """Configuration (transformers' keys), readers of each weight in float32, and the tokens in order of their rows.

    Raises:
        ModuleNotFoundError: the package gguf is not installed.
        ValueError: the file holds another architecture than llama.
    """
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path}: reading GGUF needs the package gguf: pip install -e '.[gguf]'") from error

    reader = GGUFReader(path)

    def field(key: str, default: Any = None) -> Any:
        return reader.fields[key].contents() if key in reader.fields else default

    if field("general.architecture") != "llama":
        raise ValueError(f"{path} holds a {field('general.architecture')!r} decoder, only llama can be read from GGUF")
    heads = int(field("llama.attention.head_count"))
    config = {
        "model_type": "llama",
        "hidden_size": int(field("llama.embedding_length")),
        "intermediate_size": int(field("llama.feed_forward_length")),
        "num_hidden_layers": int(field("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(field("llama.attention.head_count_kv", heads)),
        "max_position_embeddings": int(field("llama.context_length")),
        # float32 on disk; its decimal is meant
        "rms_norm_eps": round(float(field("llama.attention.layer_norm_rms_epsilon")), 9),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(field("llama.rope.freq_base", 10_000.0))},
    }
    weights: Weights = {}
    turned = {"q_proj": heads, "k_proj": int(field("llama.attention.head_count_kv", heads))}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            raise ValueError(f"{path} scales its rotary frequencies (rope_freqs), which is not supported")
        name = hugging_face_name(tensor.name)
        weights[name] = partial(_read, tensor, next((h for part, h in turned.items() if part in name), None))
    return config, weights, [str(token) for token in field("tokenizer.ggml.tokens", [])]


def _read(tensor: Any, heads: int | None) -> Tensor:
    from gguf import dequantize

    weight = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    return weight if heads is None else unpermute(weight, heads)
