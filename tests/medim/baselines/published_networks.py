"""R2Gen and R2GenCMN written plainly, with the parameter names of the released checkpoints; nothing is kept."""

import math

import torch
from torch import nn


class Norm(nn.Module):
    """R2Gen calls the parameters gamma and beta, R2GenCMN a_2 and b_2; `told` is the size of the relational memory."""

    def __init__(self, width, names, told=0):
        super().__init__()
        self.names = names
        for name, value in zip(names, (1.0, 0.0), strict=True):
            self.register_parameter(name, nn.Parameter(torch.full((width,), value)))
        if told:
            self.mlp_gamma, self.mlp_beta = (
                nn.Sequential(nn.Linear(told, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2)
            )

    def forward(self, x, memory=None):
        scale, shift = (getattr(self, name) for name in self.names)
        if memory is not None:
            scale, shift = scale + self.mlp_gamma(memory), shift + self.mlp_beta(memory)
        centred = x - x.mean(-1, keepdim=True)
        return scale * centred / (x.std(-1, keepdim=True) + 1e-6) + shift


class Heads(nn.Module):
    """Attention of `heads` heads, each over its best `top` keys (None: all); four maps under `linears`."""

    def __init__(self, width, heads, top=None):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.heads, self.top = heads, top

    def forward(self, query, key, value, mask=None):
        to_query, to_key, to_value, out = self.linears
        parts = []
        asked = ((to_query, query), (to_key, key), (to_value, value))
        for q, k, v in zip(*(m(x).chunk(self.heads, -1) for m, x in asked), strict=True):
            scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
            if mask is not None:
                scores = torch.where(mask, scores, torch.tensor(-1e9))
            if self.top is not None:
                least = scores.sort(-1, descending=True).values[..., self.top - 1 : self.top]
                scores = torch.where(scores >= least, scores, torch.tensor(-torch.inf))
            parts.append(scores.softmax(-1) @ v)
        return out(torch.cat(parts, -1))


class Wide(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return self.w_2(self.w_1(x).relu())


class Around(nn.Module):
    """A residual part's norm, under the name that it has."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm


class Layer(nn.Module):
    def __init__(self, sizes, norm, decodes):
        super().__init__()
        self.self_attn = Heads(sizes["width"], sizes["heads"])
        if decodes:
            self.src_attn = Heads(sizes["width"], sizes["heads"])
        self.feed_forward = Wide(sizes["width"], sizes["inner"])
        self.sublayer = nn.ModuleList(Around(norm()) for _ in range(3 if decodes else 2))

    def forward(self, x, mask, source=None, source_mask=None, memory=None):
        norms = [part.norm for part in self.sublayer]
        y = norms[0](x, memory)
        x = x + self.self_attn(y, y, y, mask)
        if source is not None:
            x = x + self.src_attn(norms[1](x, memory), source, source, source_mask)
        return x + self.feed_forward(norms[-1](x, memory))


class Stack(nn.Module):
    def __init__(self, sizes, norm, last, decodes):
        super().__init__()
        self.layers = nn.ModuleList(Layer(sizes, norm, decodes) for _ in range(sizes["layers"]))
        self.norm = last

    def forward(self, x, *seen):
        for layer in self.layers:
            x = layer(x, *seen)
        return self.norm(x)


class Positions(nn.Module):
    def __init__(self, width, most):
        super().__init__()
        place = torch.arange(most)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
        codes = torch.zeros(1, most, width)
        codes[0, :, 0::2], codes[0, :, 1::2] = place.sin(), place.cos()
        self.register_buffer("pe", codes)

    def forward(self, x):
        return x + self.pe[:, : x.shape[1]]


class Table(nn.Module):
    def __init__(self, ids, width):
        super().__init__()
        self.lut = nn.Embedding(ids, width)

    def forward(self, ids):
        return self.lut(ids) * math.sqrt(self.lut.embedding_dim)


class Relational(nn.Module):
    def __init__(self, width, slots, heads):
        super().__init__()
        self.attn = Heads(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.W, self.U = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.slots, self.width = slots, width

    def forward(self, x):
        memory, out = torch.eye(self.slots, self.width).expand(len(x), -1, -1), []
        for t in range(x.shape[1]):
            word = x[:, t : t + 1]
            seen = torch.cat([memory, word], 1)
            new = memory + self.attn(memory, seen, seen)
            new = new + self.mlp(new)
            gates = self.W(word) + self.U(memory.tanh())
            take, keep = gates[..., : self.width].sigmoid(), gates[..., self.width :].sigmoid()
            memory = take * new.tanh() + keep * memory
            out.append(memory.flatten(1))
        return torch.stack(out, 1)


class Inner(nn.Module):
    """`encoder_decoder.model`."""

    def __init__(self, sizes, ids, cmn):
        super().__init__()
        width, names = sizes["width"], ("gamma", "beta") if cmn is None else ("a_2", "b_2")
        told = 0 if cmn is not None else sizes["slots"] * width
        self.encoder = Stack(sizes, lambda: Norm(width, names), Norm(width, names), False)
        self.decoder = Stack(sizes, lambda: Norm(width, names, told), Norm(width, names), True)
        self.tgt_embed = nn.Sequential(Table(ids, width), Positions(width, sizes["most"]))
        if cmn is None:
            self.rm = Relational(width, sizes["slots"], sizes["heads"])
        else:
            self.src_embed, self.cmn = nn.Sequential(Positions(width, sizes["most"])), cmn


class Outer(nn.Module):
    """`encoder_decoder`."""

    def __init__(self, sizes, features, ids, is_cmn):
        super().__init__()
        width = sizes["width"]
        self.att_embed = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Dropout(0.5))
        if is_cmn:
            self.cmn = Heads(width, sizes["heads"], sizes["top"])
            self.memory_matrix = nn.Parameter(torch.randn(sizes["slots"], width))
        self.model = Inner(sizes, ids, self.cmn if is_cmn else None)
        self.logit = nn.Linear(width, ids)
        self.is_cmn = is_cmn

    def answered(self, x):
        slots = self.memory_matrix.expand(len(x), -1, -1)
        return x + self.cmn(x, slots, slots)

    def forward(self, features, ids):
        """(B, n, d) and (B, T) -> logits (B, T, V)."""
        model, patches, memory = self.model, self.att_embed(features), None
        if self.is_cmn:
            patches = model.src_embed(self.answered(patches))
        source = model.encoder(patches, None)
        words = model.tgt_embed(ids)
        if self.is_cmn:
            words = self.answered(words)
        else:
            memory = model.rm(words)
        before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        return self.logit(model.decoder(words, before, source, None, memory))


class PublishedModel(nn.Module):
    """The whole network; `stages`: the first so many stages of a torchvision ResNet."""

    def __init__(self, sizes, ids, is_cmn, resnet, stages):
        super().__init__()
        self.visual_extractor = nn.Module()
        self.visual_extractor.model = nn.Sequential(*list(resnet.children())[: 4 + stages])
        features = self.visual_extractor.model[-1][-1].bn3.num_features
        self.encoder_decoder = Outer(sizes, features, ids, is_cmn)

    def forward(self, images, ids):
        patches = self.visual_extractor.model(images)
        return self.encoder_decoder(patches.flatten(2).transpose(1, 2), ids)
