"""Pretrained decoders: Hugging Face folders and GGUF files become the backbone's start, weight by weight."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_medim as tiny
import torch
from torch import Tensor

from medim.backbones.mllm import MLLM
from medim.gguf_decoder import hugging_face_name, unpermute
from medim.medim_training import build_medim
from medim.pretrained import Beginning, Start, decoder_settings, initialise_decoder, token_ids
from medim.tokenizers.text import TextTokenizer
from medim.vocab import SharedVocab

WORDS = ["the heart is big", "no effusion is seen", "mitoses are many"]
SIZES = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "rms_norm_eps": 1e-5,
}  # fmt: skip


def checkpoint(folder: Path, kind: str = "llama", codes: int = 0) -> Any:
    """A Hugging Face folder with a tokenizer of its own; the model in it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = TextTokenizer.train(WORDS * 3, 290)
    (folder / "tokenizer.json").write_bytes(tokenizer.backend.content())
    config = AutoConfig.for_model(kind, vocab_size=tokenizer.backend.size + codes, pad_token_id=None, **SIZES)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.model.norm.weight.normal_()
    model.save_pretrained(folder)
    return model


def backbone(start: Start, **changes: Any) -> MLLM:
    settings = tiny.BACKBONE.to_dict() | {"positions": "flat"} | changes | {"decoder": decoder_settings(start)}
    torch.manual_seed(2)
    return MLLM(SharedVocab(tiny.tokenizer().size, tiny.CODES), tiny.LAYOUT, type(tiny.BACKBONE)(**settings))


@pytest.mark.parametrize("kind", ["llama", "gemma", "qwen2"])
def test_blocks_are_copied_and_rows_follow_their_tokens(tmp_path, kind):
    theirs = checkpoint(tmp_path, kind)
    start = Start(tmp_path, None, None, None)
    ours, tokenizer = backbone(start), tiny.tokenizer()
    counts = initialise_decoder(ours, tokenizer, start, 0)
    state = theirs.model.state_dict()
    for name, value in ours.decoder.state_dict().items():
        assert name == "embed_tokens.weight" or torch.equal(value, state[name])
    source = TextTokenizer.from_file(tmp_path)
    rows, table = ours.decoder.embed_tokens.weight, state["embed_tokens.weight"]
    for text in (" is", "e", "."):
        (mine,), (other,) = tokenizer.backend.encode(text), source.backend.encode(text)
        assert torch.equal(rows[mine], table[other])
    shared = token_ids(tokenizer).keys() & token_ids(source).keys()
    assert counts == {
        "block_tensors": len(state) - 1, "report_rows_copied": len(shared),
        "report_rows_drawn": tokenizer.size - len(shared), "code_rows_copied": 0, "code_rows_drawn": tiny.CODES,
    }  # fmt: skip
    torch.testing.assert_close(rows[ours.vocab.mask_id], table.mean(0))
    codes = rows[ours.vocab.image_offset :]
    assert float(codes.detach().std()) == pytest.approx(float(table.std()), rel=0.2)
    assert len(codes.unique(dim=0)) == tiny.CODES


def test_a_real_decoder_keeps_its_positions(tmp_path):
    checkpoint(tmp_path)
    start = Start(tmp_path, None, None, None)
    with pytest.raises(ValueError, match="set positions: flat"):
        initialise_decoder(backbone(start, positions="grid"), tiny.tokenizer(), start, 0)
    with pytest.raises(ValueError, match="code_patch: 1"):
        initialise_decoder(backbone(start, code_patch=3), tiny.tokenizer(), start, 0)


@pytest.mark.parametrize(("kind", "weight"), [("llama", 0.4), ("gemma", -0.6)])
def test_the_first_layers_with_a_set_final_norm(tmp_path, kind, weight):
    theirs = checkpoint(tmp_path, kind)
    start = Start(tmp_path, layers=2, final_norm=0.4, image_rows=None)
    ours = backbone(start)
    initialise_decoder(ours, tiny.tokenizer(), start, 0)
    assert len(ours.decoder.layers) == 2
    last = theirs.model.layers[1].mlp.down_proj.weight
    assert torch.equal(ours.decoder.layers[1].mlp.down_proj.weight, last)
    torch.testing.assert_close(ours.decoder.norm.weight, torch.full((16,), weight))
    with pytest.raises(ValueError, match="has 3 layers, asked for 4"):
        decoder_settings(Start(tmp_path, 4, None, None))


def test_known_codes_and_an_own_head_carry_over(tmp_path):
    theirs = checkpoint(tmp_path, codes=tiny.CODES)
    first = theirs.config.vocab_size - tiny.CODES
    start = Start(tmp_path, None, None, image_rows=first)
    ours = backbone(start, tied=False)
    counts = initialise_decoder(ours, tiny.tokenizer(), start, 0)
    assert (counts["code_rows_copied"], counts["code_rows_drawn"]) == (tiny.CODES, 0)
    offset = ours.vocab.image_offset
    assert torch.equal(ours.decoder.embed_tokens.weight[offset:], theirs.model.embed_tokens.weight[first:])
    assert torch.equal(ours.head[offset:], theirs.lm_head.weight[first:])
    with pytest.raises(ValueError, match="too few for 24 codes"):
        initialise_decoder(ours, tiny.tokenizer(), Start(tmp_path, None, None, first + 1), 0)


def test_training_starts_from_a_checkpoint(tmp_path):
    theirs = checkpoint(tmp_path / "hf")
    settings = tiny.settings(replace(tiny.BACKBONE, positions="flat"))
    model = build_medim(tiny.data(tmp_path), settings, 0, Beginning(Start(tmp_path / "hf", 1, None, None)))
    assert model.backbone.settings.decoder["hidden_size"] == 16
    assert torch.equal(model.backbone.decoder.layers[0].mlp.up_proj.weight, theirs.model.layers[0].mlp.up_proj.weight)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"place config\.json, \*\.safetensors and tokenizer\.json"):
        decoder_settings(Start(tmp_path, None, None, None))
    checkpoint(tmp_path)
    start = Start(tmp_path, None, None, None)
    ours = backbone(start)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="'gpt2' is not one of"):
        initialise_decoder(ours, tiny.tokenizer(), start, 0)


def permute(weight: Tensor, heads: int) -> Tensor:
    """What llama.cpp's converter does to q and k."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def test_unpermute_is_the_inverse_of_the_converter():
    weight = torch.randn(24, 5)
    assert torch.equal(unpermute(permute(weight, 3), 3), weight)


def write_gguf(path: Path, model: Any, pieces: list[str]) -> None:
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_token_list(pieces)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, value in model.model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem in ("embed_tokens", "norm"):
            writer.add_tensor({"embed_tokens": "token_embd", "norm": "output_norm"}[stem] + ".weight", value.numpy())
            continue
        _, number, part = stem.split(".", 2)
        value = permute(value, heads[part]) if part in heads else value
        writer.add_tensor(f"blk.{number}.{names[part]}.weight", np.ascontiguousarray(value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_gives_the_same_backbone_as_its_folder(tmp_path):
    model = checkpoint(tmp_path / "hf")
    pieces = {i: piece for piece, i in TextTokenizer.from_file(tmp_path / "hf").backend.tokenizer.get_vocab().items()}
    write_gguf(tmp_path / "tiny.gguf", model, [pieces[i] for i in range(len(pieces))])
    states = []
    for source in (tmp_path / "hf", tmp_path / "tiny.gguf"):
        start = Start(source, None, None, None)
        ours = backbone(start)
        counts = initialise_decoder(ours, tiny.tokenizer(), start, 0)
        states.append((ours.state_dict(), counts))
    (folder, counts), (file, file_counts) = states
    assert counts == file_counts
    assert all(torch.equal(folder[name], file[name]) for name in folder)


def test_foreign_gguf_tensors_are_refused():
    assert hugging_face_name("blk.3.attn_q.weight") == "layers.3.self_attn.q_proj.weight"
    with pytest.raises(ValueError, match=r"blk\.0\.ffn_gate_inp"):
        hugging_face_name("blk.0.ffn_gate_inp.weight")
