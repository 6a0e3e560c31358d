"""A plain BLIP with the released names, from the published formulas, against transformers' network."""

import pytest
import tiny_language_writers as tiny
import torch
from plain_vit import PlainViT
from torch import nn
from torch.nn.functional import gelu
from transformers import BlipForConditionalGeneration

from medim.baselines.blip import BlipNetwork, blip_config
from medim.baselines.published_blip import blip_state, load_released_blip


class PlainBert(nn.Module):
    """models/med.py: BertLMHeadModel with cross-attention in every layer."""

    def __init__(self, width, inner, layers, heads, words, positions, seen):
        super().__init__()
        self.heads = heads
        norm = lambda: nn.LayerNorm(width, eps=1e-12)  # noqa: E731

        def attention(keys):
            own = nn.ModuleDict({name: nn.Linear(width if name == "query" else keys, width)
                                 for name in ("query", "key", "value")})  # fmt: skip
            return nn.ModuleDict({
                "self": own, "output": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": norm()}),
            })  # fmt: skip

        embeddings = nn.ModuleDict({
            "word_embeddings": nn.Embedding(words, width), "position_embeddings": nn.Embedding(positions, width),
            "LayerNorm": norm(),
        })  # fmt: skip
        embeddings.register_buffer("position_ids", torch.arange(positions)[None])
        layer = lambda: nn.ModuleDict({  # noqa: E731
            "attention": attention(width), "crossattention": attention(seen),
            "intermediate": nn.ModuleDict({"dense": nn.Linear(width, inner)}),
            "output": nn.ModuleDict({"dense": nn.Linear(inner, width), "LayerNorm": norm()}),
        })  # fmt: skip
        encoder = nn.ModuleDict({"layer": nn.ModuleList(layer() for _ in range(layers))})
        self.bert = nn.ModuleDict({"embeddings": embeddings, "encoder": encoder})
        predictions = nn.ModuleDict({
            "transform": nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": norm()}),
            "decoder": nn.Linear(width, words),
        })  # fmt: skip
        predictions["decoder"].weight = embeddings["word_embeddings"].weight
        predictions.bias = predictions["decoder"].bias
        self.cls = nn.ModuleDict({"predictions": predictions})

    def attend(self, part, x, seen, causal):
        own = part["self"]
        q, k, v = (own[name](source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for name, source in (("query", x), ("key", seen), ("value", seen)))  # fmt: skip
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return part["output"]["LayerNorm"](part["output"]["dense"](mixed) + x)

    def forward(self, ids, seen):
        parts = self.bert["embeddings"]
        x = parts["word_embeddings"](ids) + parts["position_embeddings"](torch.arange(ids.shape[1]))
        x = parts["LayerNorm"](x)
        for layer in self.bert["encoder"]["layer"]:
            x = self.attend(layer["attention"], x, x, True)
            x = self.attend(layer["crossattention"], x, seen, False)
            wide = gelu(layer["intermediate"]["dense"](x))
            x = layer["output"]["LayerNorm"](layer["output"]["dense"](wide) + x)
        head = self.cls["predictions"]
        x = head["transform"]["LayerNorm"](gelu(head["transform"]["dense"](x)))
        return head["decoder"](x)


def plain(vision, text, words):
    tower = PlainViT(*(vision[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers",
                                                 "num_attention_heads", "image_size", "patch_size")))  # fmt: skip
    decoder = PlainBert(*(text[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers",
                                                  "num_attention_heads")), words, text["max_position_embeddings"],
                        vision["hidden_size"])  # fmt: skip
    return nn.ModuleDict({"visual_encoder": tower, "text_decoder": decoder})


TEXT = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 110}  # fmt: skip


def released(tmp_path):
    torch.manual_seed(0)
    words = tiny.published_words(tmp_path, "bert", 150)
    source = plain(tiny.VISION, TEXT, words.size).eval()
    network = BlipForConditionalGeneration(blip_config(BlipNetwork(tiny.VISION, TEXT, 0.1, 3), words)).eval()
    return source, network, words


def test_released_weights_give_the_released_logits(tmp_path):
    source, network, words = released(tmp_path)
    state = source.state_dict() | {"text_encoder.x": torch.zeros(1), "visual_encoder_m.cls_token": torch.zeros(1)}
    torch.save({"model": state, "epoch": 4}, tmp_path / "model_base.pth")
    load_released_blip(network, tmp_path / "model_base.pth")
    pixels, ids = torch.randn(2, 3, 16, 16), torch.randint(0, words.size, (2, 9))
    with torch.no_grad():
        _, seen = source["visual_encoder"](pixels)
        expected = source["text_decoder"](ids, seen)
        found = network(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_every_released_name_has_its_place_at_the_real_size(tmp_path):
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
              "image_size": 384, "patch_size": 16}  # fmt: skip
    text = {**TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
            "max_position_embeddings": 512}  # fmt: skip
    words = tiny.published_words(tmp_path, "bert", 30522)
    with torch.device("meta"):
        source = plain(vision, text, 30524)
        network = BlipForConditionalGeneration(blip_config(BlipNetwork(vision, text, 0.1, 3), words))
    found = {name: value.shape for name, value in blip_state(source.state_dict(), 576).items()}
    assert found == {name: value.shape for name, value in network.state_dict().items()}


def test_other_files_are_refused(tmp_path):
    source, network, _ = released(tmp_path)
    with pytest.raises(ValueError, match=r"no visual_encoder\.\*"):
        blip_state({"a": torch.zeros(1)}, 4)
    state = dict(source.state_dict())
    name = "text_decoder.cls.predictions.decoder.weight"
    torch.save(state | {name: state[name] + 1}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="which BLIP ties"):
        load_released_blip(network, tmp_path / "other.pth")
