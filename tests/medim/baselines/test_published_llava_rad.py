"""LLaVA-Rad's files, written with the released names, against the formulas of the network that they belong to."""

import json

import pytest
import tiny_language_writers as tiny
import torch
from plain_vit import PlainViT
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import gelu
from transformers import LlamaForCausalLM

from medim.baselines.llava_rad import LlavaRadNetwork, LlavaRadStart, LlavaRadWriter
from medim.baselines.method_settings import read_settings
from medim.baselines.picture_encoders import to_tower
from medim.baselines.prompted_writer import llama_config
from medim.baselines.published_llava_rad import (
    adapter_of,
    language_state,
    projector_state,
    read_release,
    vision_state,
)

NETWORK = {"vision": tiny.VISION, "language": tiny.LANGUAGE, "prompt": "see <image> :", "lora": None,
           "decoding": tiny.GREEDY}  # fmt: skip
RANK, ALPHA = 3, 6


def tower(vision):
    return PlainViT(*(vision[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers",
                                                "num_attention_heads", "image_size", "patch_size")), True)  # fmt: skip


def checkpoint(trunk):
    state = {f"visual.trunk.{name}": value for name, value in trunk.state_dict().items()}
    return state | {"visual.head.proj.weight": torch.zeros(2, 2), "text.proj.weight": torch.zeros(2),
                    "logit_scale": torch.zeros(())}  # fmt: skip


def adapters(causal):
    maps = {name: part for name, part in causal.named_modules()
            if isinstance(part, nn.Linear) and name != "lm_head"}  # fmt: skip
    state = {}
    for name, part in maps.items():
        state[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, part.in_features)
        state[f"base_model.model.{name}.lora_B.weight"] = torch.randn(part.out_features, RANK)
    return state


@pytest.fixture
def files(tmp_path):
    torch.manual_seed(0)
    words = tiny.words()
    trunk, causal = tower(tiny.VISION), LlamaForCausalLM(llama_config(tiny.LANGUAGE, words))
    projector = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 48))
    for part in (causal, projector):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.3)
    torch.save({"state_dict": {f"module.{n}": v for n, v in checkpoint(trunk).items()}}, tmp_path / "clip.pt")
    release = tmp_path / "release"
    release.mkdir()
    torch.save({f"base_model.model.model.mm_projector.{n}": v for n, v in projector.state_dict().items()},
               release / "non_lora_trainables.bin")  # fmt: skip
    low_rank = adapters(causal)
    torch.save(low_rank, release / "adapter_model.bin")
    (release / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA}))
    vicuna = tmp_path / "vicuna"
    vicuna.mkdir()
    old_buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6)}
    save_file(dict(causal.state_dict()) | old_buffer, vicuna / "model.safetensors")
    start = LlavaRadStart(str(tmp_path / "clip.pt"), str(vicuna), str(release))
    return words, trunk, projector, causal, low_rank, start


def test_released_files_give_the_released_logits(files):
    words, trunk, projector, causal, low_rank, start = files
    writer = LlavaRadWriter(read_settings(LlavaRadNetwork, NETWORK, "network"), words).eval()
    assert writer.start_from(start) == {"vision": True, "language": True}
    pictures = tiny.images()[:2]
    with torch.no_grad():
        for name, part in causal.named_modules():
            if f"base_model.model.{name}.lora_A.weight" in low_rank:
                a, b = (low_rank[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
                part.weight += ALPHA / RANK * b @ a
        states, _ = trunk(to_tower(pictures, writer.network.config.vision_config))
        patches = states[-2][:, 1:]  # last layer but one, without the class token
        seen = projector[2](gelu(projector[0](patches)))
        words_of = causal.model.embed_tokens
        before, after = words.pieces("see "), words.pieces(" :")
        rows = []
        for picture in seen:
            head, tail = (words_of(torch.tensor(ids)) for ids in ([words.begin, *before], after))
            rows.append(torch.cat([head, picture, tail]))
        expected = causal.eval()(inputs_embeds=torch.stack(rows)).logits[:, -1].log_softmax(-1)
        prompts = writer.prompts(pictures)
        nats = torch.stack([writer.decoder.nats(prompts, [[word]] * 2) for word in range(20)], dim=1)
    torch.testing.assert_close(nats, -expected[:, :20], rtol=1e-3, atol=1e-3)


def test_every_released_name_has_its_place_at_the_real_size(tmp_path):
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
              "image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-6}  # fmt: skip
    language = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    words = tiny.published_words(tmp_path, "llama", 32000)
    sizes = read_settings(LlavaRadNetwork, {**NETWORK, "vision": vision, "language": language}, "network")
    with torch.device("meta"):
        writer, trunk = LlavaRadWriter(sizes, words), tower(vision)
        causal = LlamaForCausalLM(llama_config(language, words))
        low_rank = adapters(causal)
        projector = nn.Sequential(nn.Linear(768, 4096), nn.GELU(), nn.Linear(4096, 4096))
    model = writer.network.model

    def shapes(state):
        return {name: tuple(value.shape) for name, value in state.items()}

    assert shapes(vision_state(checkpoint(trunk), 1369)) == shapes(model.vision_tower.state_dict())
    named = {f"model.mm_projector.{name}": value for name, value in projector.state_dict().items()}
    assert shapes(projector_state(named)) == shapes(model.multi_modal_projector.state_dict())
    adapter = adapter_of(low_rank, {"r": 64, "lora_alpha": 128})
    assert adapter.scale == 2 and len(adapter.pairs) == 32 * 7
    ours = {f"model.{name}": value for name, value in model.language_model.state_dict().items()}
    ours["lm_head.weight"] = writer.network.lm_head.weight
    assert shapes(language_state(causal.state_dict(), adapter)) == shapes(ours)


def test_parts_that_are_missing_are_named(tmp_path, files):
    words, *_, start = files
    writer = LlavaRadWriter(read_settings(LlavaRadNetwork, NETWORK, "network"), words)
    with pytest.raises(ValueError, match=r"set start\.language"):
        writer.start_from(LlavaRadStart(None, None, start.release))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither non_lora_trainables"):
        read_release(tmp_path / "empty")
    with pytest.raises(ValueError, match="biomedclipcxr_518_checkpoint"):
        vision_state({"a": torch.zeros(1)}, 4)
    with pytest.raises(ValueError, match=r"lora_A or lora_B is missing for \['x'\]"):
        adapter_of({"base_model.model.x.lora_A.weight": torch.zeros(1)}, {"r": 1, "lora_alpha": 1})
    with pytest.raises(ValueError, match="no mm_projector"):
        projector_state({"a.mm_projector.0.weight": torch.zeros(1)})
