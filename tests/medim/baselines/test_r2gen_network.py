"""Relational memory and conditional norm from the formulas of Chen et al. 2020, and the published sizes."""

import math

import pytest
import torch
from tiny_writers import DECODER

from medim.baselines.published_r2gen import R2GEN
from medim.baselines.r2gen_network import ConditionalNorm, R2GenNetwork, R2GenSizes, RelationalMemory, norm_maps
from medim.baselines.visual_extractor import Features

WIDTH, SLOTS, HEADS = 8, 3, 2


def memory(seed=0):
    torch.manual_seed(seed)
    found = RelationalMemory(WIDTH, SLOTS, HEADS, 0.5)
    found.init_weights()
    return found.eval()


def linear(module, x):
    return x @ module.weight.T + module.bias


def reference_step(rm, slots, x):
    """One text, one word: slots (S, D), x (D,)."""
    q_map, k_map, v_map = (
        lambda y, n=n: (
            y @ rm.project.weight[n * WIDTH : (n + 1) * WIDTH].T + rm.project.bias[n * WIDTH : (n + 1) * WIDTH]
        )
        for n in range(3)
    )
    seen = torch.cat([slots, x[None]])
    answers = torch.zeros(SLOTS, WIDTH)
    size = WIDTH // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for slot in range(SLOTS):
            scores = torch.stack([q_map(slots)[slot, part] @ k_map(seen)[j, part] for j in range(SLOTS + 1)])
            weights = (scores / math.sqrt(size)).softmax(0)
            answers[slot, part] = sum(weights[j] * v_map(seen)[j, part] for j in range(SLOTS + 1))
    z = slots + linear(rm.out, answers)
    z = z + linear(rm.mlp[2], linear(rm.mlp[0], z).relu()).relu()
    gates = linear(rm.gate_of_input, x) + linear(rm.gate_of_memory, slots.tanh())
    take, keep = gates[:, :WIDTH].sigmoid(), gates[:, WIDTH:].sigmoid()
    return take * z.tanh() + keep * slots


@torch.no_grad()
def test_the_memory_follows_its_formulas():
    rm = memory()
    x = torch.randn(2, 4, WIDTH)
    found = rm(x, rm.first(2))
    for row in range(2):
        slots = torch.eye(SLOTS, WIDTH)
        for t in range(4):
            slots = reference_step(rm, slots, x[row, t])
            torch.testing.assert_close(found[row, t], slots.flatten(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_memory_goes_on_where_it_was():
    rm = memory()
    x = torch.randn(2, 5, WIDTH)
    whole = rm(x, rm.first(2))
    torch.testing.assert_close(rm(x[:, 3:], whole[:, 2]), whole[:, 3:])


def test_the_first_memory_is_the_identity_padded_or_cut():
    assert memory().first(1).view(SLOTS, WIDTH).tolist() == torch.eye(SLOTS, WIDTH).tolist()
    assert RelationalMemory(2, 3, 1, 0.0).first(2).view(2, 3, 2)[1].tolist() == [[1, 0], [0, 1], [0, 0]]


@torch.no_grad()
def test_the_conditional_norm_follows_its_formula():
    torch.manual_seed(0)
    first, norm = ConditionalNorm(WIDTH, SLOTS), ConditionalNorm(WIDTH, SLOTS)
    norm.number = 1
    norm.gamma.data.normal_()
    norm.beta.data.normal_()
    x, told = torch.randn(2, 3, WIDTH), torch.randn(2, 3, SLOTS * WIDTH)
    changes = norm_maps([first, norm]).changes(told)
    assert changes.shape == (2, 2, 2, 3, WIDTH)
    gamma, beta = (
        base + linear(change[2], linear(change[0], told).relu())
        for base, change in ((norm.gamma, norm.gamma_change), (norm.beta, norm.beta_change))
    )
    mean = x.sum(-1, keepdim=True) / WIDTH
    deviation = ((x - mean).square().sum(-1, keepdim=True) / (WIDTH - 1)).sqrt()
    torch.testing.assert_close(norm(x, changes), norm(x, told))
    torch.testing.assert_close(norm(x, told), gamma * (x - mean) / (deviation + 1e-6) + beta)
    layers = [layer for change in (norm.gamma_change, norm.beta_change) for layer in change[::2]]
    assert [float(layer.bias.mean()) for layer in layers] == pytest.approx([0.1] * 4)


def test_training_and_writing_say_the_same():
    torch.manual_seed(0)
    net = R2GenNetwork(R2GenSizes(DECODER, SLOTS, 4), 6, 20).eval()
    assert [norm.number for norm in net.conditional_norms()] == list(range(3 * DECODER.layers))
    seen, ids = Features(torch.randn(2, 5, 6), None), torch.randint(1, 20, (2, 7))
    with torch.no_grad():
        assert net.project() is not None
        written = net(ids, net.start(seen))[0]
    assert net.project() is None
    trained = net(ids, net.start(seen))[0]
    torch.testing.assert_close(written, trained, atol=1e-5, rtol=1e-5)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_published_sizes_have_the_published_number_of_parameters():
    with torch.device("meta"):
        net = R2GenNetwork(R2GEN.network, 2048, 4336)  # 4335 words
    norms = sum(count(module) for module in net.modules() if isinstance(module, ConditionalNorm))
    assert (count(net), norms, count(net.memory)) == (39_637_744, 18_902_016, 2_626_560)
    assert [round(n / 1e6, 2) for n in (count(net), norms, count(net.memory))] == [39.64, 18.90, 2.63]


def test_impossible_sizes_are_named():
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        R2GenSizes(DECODER, 0, 4)
    with pytest.raises(ValueError, match=r"memory_heads must divide decoder.width 32, got 5"):
        R2GenSizes(DECODER, 3, 5)
