"""The shared memory from the formulas of Chen et al. 2021, and the published sizes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_writers import CMN, DECODER, network

from medim.baselines.published_r2gen import R2GEN_CMN
from medim.baselines.r2gen_cmn_network import CMNNetwork, CMNSizes, SharedMemory, best_slots
from medim.baselines.report_decoder import sinusoids

WIDTH, SLOTS, TOP, HEADS = 8, 6, 2, 2


def memory(top=TOP):
    torch.manual_seed(0)
    found = SharedMemory(WIDTH, SLOTS, top, HEADS, 0.5)
    found.init_weights()
    found.slots.data.normal_()  # larger, so that slots differ
    return found.eval()


def linear(module, x):
    return x @ module.weight.T + module.bias


def reference(shared, x):
    """One query (D,) alone: the `top` slots of each head, best first."""
    query, keys, values = linear(shared.query, x), linear(shared.key, shared.slots), linear(shared.value, shared.slots)
    size, answers = WIDTH // HEADS, []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = [float(query[part] @ keys[n, part]) / math.sqrt(size) for n in range(SLOTS)]
        best = sorted(range(SLOTS), key=lambda n: -scores[n])[: shared.top]
        weights = torch.tensor([scores[n] for n in best]).softmax(0)
        answers.append(sum(w * values[n, part] for w, n in zip(weights, best, strict=True)))
    return linear(shared.out, torch.cat(answers))


@torch.no_grad()
@pytest.mark.parametrize("top", [1, TOP, SLOTS])
def test_the_memory_answers_from_its_best_slots(top):
    shared = memory(top)
    x = torch.randn(3, 4, WIDTH)
    found = shared(x, shared.project())
    for row in range(3):
        for t in range(4):
            torch.testing.assert_close(found[row, t], reference(shared, x[row, t]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_patches_and_words_are_given_answers_and_positions():
    net = network(CMN)
    projected = net.project()
    patches, words = torch.randn(2, 3, 32), torch.randn(2, 4, 32)
    codes = sinusoids(0, 3, 32, torch.device("cpu"))
    torch.testing.assert_close(net.see(patches, projected), patches + net.memory(patches, projected) + codes)
    found, condition, _ = net.read(words, net.first_memory(2), projected)
    torch.testing.assert_close(found, words + net.memory(words, projected))
    assert condition is None


def test_slots_are_learned_through_both_questions():
    shared = memory()
    shared(torch.randn(2, 3, WIDTH), shared.project()).square().sum().backward()
    assert shared.slots.grad.abs().sum() > 0 and shared.query.weight.grad.abs().sum() > 0


def test_slots_begin_with_deviation_one_over_width():
    torch.manual_seed(0)
    shared = SharedMemory(64, 512, 4, 4, 0.0)
    shared.init_weights()
    assert float(shared.slots.detach().std()) == pytest.approx(1 / 64, rel=0.02)


def test_published_sizes_have_the_published_number_of_parameters():
    with torch.device("meta"):
        net = CMNNetwork(R2GEN_CMN.network, 2048, 4336)  # 4335 words
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 20.22


def test_a_query_sees_no_more_slots_than_there_are():
    for top in (0, 7):
        with pytest.raises(ValueError, match=rf"top must lie in \[1, slots\], got {top} of 6"):
            CMNSizes(DECODER, 6, top)


@given(st.sampled_from([6, 8, 32, 64, 256, 2048]), st.sampled_from([1, 2, 7, 32]), st.integers(0, 2**31), st.booleans())
@settings(deadline=None)
def test_the_best_slots_are_those_of_topk(slots, top, seed, ties):
    if top > slots:
        return
    scores = torch.randn(2, 3, slots, generator=torch.Generator().manual_seed(seed))
    if ties:
        scores = scores.round()
    chosen = best_slots(scores, top)
    assert chosen.shape == (2, 3, top)
    assert all(len(set(row.tolist())) == top for row in chosen.flatten(0, 1))
    found = scores.gather(-1, chosen).sort(-1, descending=True).values
    torch.testing.assert_close(found, scores.topk(top).values, rtol=0, atol=0)
