"""A vision transformer from its formulas (Dosovitskiy et al. 2021), by timm's names; LayerScale as in DINOv2."""

import torch
from torch import nn
from torch.nn.functional import gelu


class PlainViT(nn.Module):
    def __init__(self, width, inner, layers, heads, size, patch, scaled=False):
        super().__init__()
        self.heads = heads
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.ModuleList(self.block(width, inner, scaled) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @staticmethod
    def block(width, inner, scaled):
        block = nn.ModuleDict({
            "norm1": nn.LayerNorm(width, eps=1e-6), "norm2": nn.LayerNorm(width, eps=1e-6),
            "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}),
            "mlp": nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)}),
        })  # fmt: skip
        for name in ("ls1", "ls2") if scaled else ():
            block[name] = nn.ParameterDict({"gamma": nn.Parameter(torch.rand(width) + 0.5)})
        return block

    def attention(self, part, x):
        batch, length, width = x.shape
        q, k, v = part["qkv"](x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
        return part["proj"]((weights @ v).transpose(1, 2).reshape(batch, length, width))

    def forward(self, pixels):
        """(states before the first and after every block, the last one normed)."""
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        states = [x]
        for block in self.blocks:
            first, second = (block[name]["gamma"] if name in block else 1.0 for name in ("ls1", "ls2"))
            x = x + first * self.attention(block["attn"], block["norm1"](x))
            x = x + second * block["mlp"]["fc2"](gelu(block["mlp"]["fc1"](block["norm2"](x))))
            states.append(x)
        return states, self.norm(x)
