"""The shared transformer: its parts from their formulas, one word at a time against the whole text."""

import math

import pytest
import torch
from tiny_writers import CMN, DECODER, R2GEN, network
from torch import nn

from medim.baselines.report_decoder import (
    Attention,
    DecoderSizes,
    StdNorm,
    sinusoids,
    standardise,
)
from medim.baselines.visual_extractor import Features

BOTH = pytest.mark.parametrize("sizes", [R2GEN, CMN], ids=["r2gen", "r2gen_cmn"])


def features(batch=2, patches=5, present=None, seed=0):
    values = torch.randn(batch, patches, 16, generator=torch.Generator().manual_seed(seed))
    return Features(values, present)


def ids(rows=2, length=7, seed=1):
    out = torch.randint(1, 11, (rows, length), generator=torch.Generator().manual_seed(seed))
    out[:, 0] = 0
    return out


def test_the_norm_divides_by_the_unbiased_deviation_plus_eps():
    x = torch.tensor([[1.0, 3.0, 5.0, 7.0]])
    deviation = math.sqrt((9 + 1 + 1 + 9) / 3)
    expected = torch.tensor([[-3.0, -1.0, 1.0, 3.0]]) / (deviation + 1e-6)
    torch.testing.assert_close(standardise(x), expected)
    assert standardise(torch.full((1, 4), 2.0)).tolist() == [[0.0] * 4]
    norm = StdNorm(4)
    norm.gamma.data.fill_(2.0)
    norm.beta.data.fill_(1.0)
    torch.testing.assert_close(norm(x), 2 * expected + 1)


def test_positions_are_those_of_vaswani():
    found = sinusoids(3, 2, 8, torch.device("cpu"))
    for row, position in enumerate((3, 4)):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert found[row, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[row, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)
    torch.testing.assert_close(sinusoids(0, 9, 8, torch.device("cpu"))[3:5], found)


def test_attention_is_torchs():
    torch.manual_seed(0)
    ours, theirs = Attention(DECODER).eval(), nn.MultiheadAttention(32, 4, batch_first=True).eval()
    maps = (ours.query, ours.key, ours.value)
    theirs.in_proj_weight.data = torch.cat([one.weight for one in maps])
    theirs.in_proj_bias.data = torch.cat([one.bias for one in maps])
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, seen = torch.randn(2, 3, 32), torch.randn(2, 5, 32)
    present = torch.tensor([[True] * 5, [True, False, True, False, False]])
    expected, _ = theirs(x, seen, seen, key_padding_mask=~present)
    torch.testing.assert_close(ours(x, ours.keys_values(seen), present[:, None, None]), expected)


@BOTH
def test_one_word_at_a_time_gives_the_logits_of_the_whole_text(sizes):
    net, text = network(sizes), ids()
    seen = features(present=torch.tensor([[True] * 5, [True, True, False, False, True]]))
    whole, _ = net(text, net.start(seen))
    state, found = net.start(seen), []
    for t in range(text.shape[1]):
        logits, state = net(text[:, t : t + 1], state)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-5, rtol=1e-5)
    assert state.length == 7 and whole.shape == (2, 7, 11)
    halves, state = net(text[:, :3], net.start(seen))
    rest, _ = net(text[:, 3:], state)
    torch.testing.assert_close(torch.cat([halves, rest], 1), whole, atol=1e-5, rtol=1e-5)


@BOTH
def test_beams_of_a_study_are_what_each_is_alone(sizes):
    net, seen, text = network(sizes), features(3), ids(6)
    first, state = net.step(torch.zeros(3, dtype=torch.int64), net.start(seen))
    torch.testing.assert_close(first.exp().sum(1), torch.ones(3))
    state = net.reorder(state, torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2]))
    for t in range(1, 4):
        found, state = net.step(text[:4, t], state)
    for row, study in enumerate((0, 0, 2, 2)):
        alone, _ = net(text[row : row + 1, :4], net.start(Features(seen.values[study : study + 1], None)))
        torch.testing.assert_close(found[row], alone[0, -1].log_softmax(-1), atol=1e-5, rtol=1e-5)


@BOTH
def test_reordered_rows_bring_their_own_past(sizes):
    net, seen, text = network(sizes), features(1), ids(2)
    _, state = net.step(torch.zeros(1, dtype=torch.int64), net.start(seen))
    state = net.reorder(state, torch.tensor([0, 0]), torch.tensor([0]))
    _, state = net.step(text[:, 1], state)
    state = net.reorder(state, torch.tensor([1, 1]), torch.tensor([0]))
    found, _ = net.step(text[:, 2], state)
    for row in range(2):
        history = torch.tensor([[0, int(text[1, 1]), int(text[row, 2])]])
        alone, _ = net(history, net.start(seen))
        torch.testing.assert_close(found[row], alone[0, -1].log_softmax(-1), atol=1e-5, rtol=1e-5)


@BOTH
def test_later_words_and_absent_patches_change_nothing(sizes):
    net, text = network(sizes), ids()
    present = torch.tensor([[True] * 5, [True, True, True, False, False]])
    seen = features(present=present)
    whole, _ = net(text, net.start(seen))
    other_text = text.clone()
    other_text[:, 4:] = 3
    values = seen.values.clone()
    values[1, 3:] = 50.0
    found, _ = net(other_text, net.start(Features(values, present)))
    torch.testing.assert_close(found[:, :4], whole[:, :4], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[:, 4:], whole[:, 4:], atol=1e-3)
    values[1, 0] = 50.0
    changed, _ = net(text, net.start(Features(values, present)))
    assert not torch.allclose(changed[1], whole[1], atol=1e-3)
    torch.testing.assert_close(changed[0], whole[0], atol=1e-5, rtol=1e-5)


@BOTH
def test_every_weight_learns(sizes):
    net = network(sizes).train()
    logits, _ = net(ids(), net.start(features()))
    logits.log_softmax(-1)[..., 1].sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A key's bias adds the same to all scores of a query, which softmax does not see
    assert [name for name in still if not name.endswith("key.bias")] == []


def test_impossible_sizes_are_named():
    for change in ({"heads": 5}, {"width": 0}, {"layers": 0}, {"dropout": 1.0}, {"feature_dropout": -0.1}):
        with pytest.raises(ValueError, match=r"decoder\."):
            DecoderSizes(**vars(DECODER) | change)
