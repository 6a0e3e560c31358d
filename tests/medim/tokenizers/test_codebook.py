"""Codebooks against closed forms, transformers' quantiser, and themselves after a resume."""

import math

import pytest
import torch
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEVectorQuantizer

from medim.tokenizers.codebook import (
    CodebookSettings,
    EmaCodebook,
    LearnedCodebook,
    build_codebook,
    codebook_statistics,
    kmeans,
    nearest,
)

EMA = CodebookSettings(kind="ema", beta=0.25, decay=0.9, restart_below=0.1, start_after=2, samples_per_code=4)


def rows(z):
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def test_nearest_is_the_argmin_of_the_distances():
    z, codes = torch.randn(50, 6), torch.randn(20, 6)
    assert torch.equal(nearest(z, codes), torch.cdist(z.double(), codes.double()).argmin(1))


def test_learned_codebook_equals_the_chameleon_quantiser():
    torch.manual_seed(0)
    ours = LearnedCodebook(16, 4)
    theirs = ChameleonVQVAEVectorQuantizer(ChameleonVQVAEConfig(num_embeddings=16, embed_dim=4))
    theirs.load_state_dict(ours.state_dict())
    z = (torch.randn(2, 4, 3, 3) / 16).requires_grad_()
    z2 = z.detach().clone().requires_grad_()
    a, (b_q, b_loss, b_codes) = ours(z), theirs(z2)
    assert torch.equal(a.codes.flatten(), b_codes)
    torch.testing.assert_close(a.z_q, b_q)
    torch.testing.assert_close(a.loss, b_loss)
    (a.z_q.square().sum() + a.loss).backward()
    (b_q.square().sum() + b_loss).backward()
    torch.testing.assert_close(z.grad, z2.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.embedding.weight.grad)


def test_kmeans_finds_separated_clusters():
    torch.manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    points = (centres[:, None] + 0.1 * torch.randn(2, 40, 2)).flatten(0, 1)
    means = kmeans(points, 2, iterations=30)
    order = nearest(centres, means)
    torch.testing.assert_close(means[order], torch.stack([points[:40].mean(0), points[40:].mean(0)]))


def test_kmeans_refuses_too_few_points():
    with pytest.raises(ValueError, match="at least 5 points, got 4"):
        kmeans(torch.randn(4, 2), 5)


def test_latents_pass_unquantised_until_kmeans_sets_the_codes():
    torch.manual_seed(0)
    book = EmaCodebook(8, 3, EMA).train()
    z = torch.randn(2, 3, 4, 4)
    first = book(z)
    assert torch.equal(first.z_q, z) and not book.started
    book(z)
    assert book.started
    state = {key: value.clone() for key, value in book.state_dict().items()}
    quantised = book.eval()(z).z_q
    assert not torch.equal(quantised, z)
    assert all(torch.equal(state[key], value) for key, value in book.state_dict().items())  # eval learns nothing


def test_start_waits_for_enough_latents():
    book = EmaCodebook(8, 3, EMA).train()
    for expected in (False, False, False, True):  # 8 codes x 4 samples = 32 latents, 8 a call
        book(torch.randn(1, 3, 2, 4))
        assert bool(book.started) is expected


def test_ema_follows_the_closed_form():
    torch.manual_seed(0)
    book = EmaCodebook(2, 1, CodebookSettings("ema", 0.25, 0.9, 0.0, 0, 1)).train()
    book.started.fill_(True)
    book.weight.copy_(torch.tensor([[0.0], [10.0]]))
    book.embed_sum.copy_(book.weight)
    book(torch.tensor([1.0, 1.0, 1.0, 11.0]).view(1, 1, 2, 2))
    counts = torch.tensor([0.9 + 0.1 * 3, 0.9 + 0.1])
    sums = torch.tensor([0.1 * 3, 0.9 * 10 + 0.1 * 11])
    total = counts.sum()
    smoothed = (counts + 1e-5) / (total + 2e-5) * total
    torch.testing.assert_close(book.cluster_size, counts)
    torch.testing.assert_close(book.weight[:, 0], sums / smoothed)


def test_commitment_loss_and_straight_through():
    book = EmaCodebook(2, 1, EMA).eval()
    book.started.fill_(True)
    book.weight.copy_(torch.tensor([[0.0], [10.0]]))
    z = torch.tensor([1.0, 9.0, 4.0, 10.0]).view(1, 1, 2, 2).requires_grad_()
    out = book(z)
    assert out.z_q.flatten().tolist() == [0.0, 10.0, 0.0, 10.0]
    torch.testing.assert_close(out.loss, torch.tensor(0.25 * (1 + 1 + 16 + 0) / 4))
    (grad,) = torch.autograd.grad(out.z_q.sum(), z)
    assert torch.equal(grad, torch.ones_like(z))


def test_dead_codes_move_onto_latents():
    torch.manual_seed(0)
    book = EmaCodebook(4, 2, EMA).train()
    book.started.fill_(True)
    book.weight.copy_(torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]]))
    book.embed_sum.copy_(book.weight)
    z = torch.randn(1, 2, 8, 8)
    for _ in range(200):
        book(z)
    assert float(book.weight.abs().max()) < 5
    assert codebook_statistics(book.encode(z), 4)[0] == 1.0


@pytest.mark.parametrize("at", [1, 2, 5])
def test_resume_is_exact_before_and_after_the_start(at):
    def run(book, first, last):
        for step in range(first, last):
            torch.manual_seed(step)
            book(torch.randn(2, 3, 4, 4))
        return book.state_dict()

    torch.manual_seed(9)
    whole = EmaCodebook(8, 3, EMA).train()
    begin = {key: value.clone() for key, value in whole.state_dict().items()}
    expected = run(whole, 0, 8)
    part = EmaCodebook(8, 3, EMA).train()
    part.load_state_dict(begin)
    saved = {key: value.clone() for key, value in run(part, 0, at).items()}
    resumed = EmaCodebook(8, 3, EMA).train()
    resumed.load_state_dict(saved)
    for key, value in run(resumed, at, 8).items():
        assert torch.equal(value, expected[key]), key


def test_quantisation_is_float32_under_autocast():
    book = LearnedCodebook(64, 8).eval()
    z = torch.randn(1, 8, 8, 8) / 64
    with torch.autocast("cpu", torch.bfloat16):
        out = book(z)
    assert out.z_q.dtype == torch.float32
    assert torch.equal(out.codes, book(z).codes)


def test_build_codebook_names_an_unknown_kind():
    with pytest.raises(ValueError, match="ema or learned, got 'lfq'"):
        build_codebook(4, 2, CodebookSettings("lfq", 0.25, 0.9, 0.1, 0, 1))


def test_statistics_of_known_codes():
    assert codebook_statistics(torch.arange(8), 8) == (1.0, pytest.approx(8.0))
    assert codebook_statistics(torch.zeros(5, dtype=torch.int64), 8) == (1 / 8, pytest.approx(1.0))
    usage, perplexity = codebook_statistics(torch.tensor([[0, 0], [0, 1]]), 4)
    assert usage == 0.5
    assert perplexity == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        codebook_statistics(torch.tensor([4]), 4)


def test_settings_refuse_wrong_values():
    with pytest.raises(ValueError, match="ema or learned, got 'lfq'"):
        CodebookSettings("lfq", 0.25, 0.9, 0.1, 0, 1)
    with pytest.raises(ValueError, match="samples_per_code must be at least 1, got 0"):
        CodebookSettings("ema", 0.25, 0.9, 0.1, 0, 0)


@pytest.mark.parametrize(("start_after", "rows"), [(0, 64), (0, 7), (0, 32), (3, 16), (9, 5)])
def test_the_start_comes_when_it_is_foretold(start_after, rows):
    settings = CodebookSettings("ema", 0.25, 0.9, 0.1, start_after, 4)
    book, calls = EmaCodebook(8, 3, settings).train(), 0
    while not book.started:
        book(torch.randn(1, 3, 1, rows))
        calls += 1
    assert calls == settings.calls_before_start(8, rows)
