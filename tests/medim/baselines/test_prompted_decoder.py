import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from medim.baselines.prompted_decoder import Decoding, PromptedDecoder, nucleus_draw

GREEDY, BEAM = Decoding("greedy", 1, 1.0, 1.0), Decoding("beam", 3, 1.0, 1.0)
NUCLEUS = Decoding("nucleus", 1, 0.9, 1.0)
END, LIMIT = 3, 12


def causal():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.5, pad_token_id=None, bos_token_id=1, eos_token_id=END,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


CAUSAL = causal()
DECODER = PromptedDecoder(CAUSAL.model, CAUSAL.lm_head, END, LIMIT)
PROMPTS = [torch.randn(length, 16, generator=torch.Generator().manual_seed(length)) for length in (3, 7, 5, 1)]
TEXTS = [[4, 5, END], [6, END], [7, 8, 9, 10, END], [END]]


def logits(prompt, ids):
    """Of the next token, from scratch."""
    rows = torch.cat([prompt, DECODER.embed(ids)])[None]
    with torch.no_grad():
        return CAUSAL(inputs_embeds=rows).logits[0]


def test_teacher_forcing_of_ragged_rows_is_that_of_each_row():
    expected = []
    for prompt, ids in zip(PROMPTS, TEXTS, strict=True):
        log_p = logits(prompt, ids).log_softmax(-1)
        expected += [-log_p[len(prompt) - 1 + place, word] for place, word in enumerate(ids)]
    torch.testing.assert_close(DECODER.nats(PROMPTS, TEXTS), torch.stack(expected), rtol=1e-4, atol=1e-5)
    states = DECODER.states(PROMPTS, TEXTS)
    assert [len(state) for state in states] == [len(ids) + 1 for ids in TEXTS]


def test_greedy_takes_the_best_token_of_a_pass_from_scratch():
    for prompt, found in zip(PROMPTS, DECODER.write(PROMPTS, GREEDY, [0] * 4), strict=True):
        ids = []
        while len(ids) < LIMIT and (best := int(logits(prompt, ids)[-1].argmax())) != END:
            ids.append(best)
        assert found == ids


@pytest.mark.parametrize("how", [GREEDY, BEAM, NUCLEUS])
def test_a_text_depends_on_its_prompt_and_seed_alone(how):
    seeds = [11, 12, 13, 14]
    together = DECODER.write(PROMPTS, how, seeds)
    alone = [DECODER.write([prompt], how, [seed])[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    assert together == alone
    assert all(len(ids) <= LIMIT and END not in ids for ids in together)


def test_seeds_matter_to_the_nucleus():
    drawn = DECODER.write([PROMPTS[0]] * 20, NUCLEUS, range(20))
    assert len({tuple(ids) for ids in drawn}) > 5
    assert DECODER.write([PROMPTS[0]] * 20, NUCLEUS, range(20)) == drawn


def uncached_beams(prompt, beams):
    """The words of the best mean log p, every beginning read from scratch, to the last step."""
    live, finished = [(0.0, [])], []
    for length in range(1, LIMIT + 1):
        found = []
        for score, ids in live:
            log_p = logits(prompt, ids)[-1].log_softmax(-1)
            found += [(score + float(log_p[word]), [*ids, word]) for word in range(len(log_p))]
        best = sorted(found, key=lambda one: -one[0])[:beams]
        finished += [(score / length, ids) for score, ids in best if ids[-1] == END or length == LIMIT]
        live = [(score, ids) for score, ids in best if ids[-1] != END]
    _, ids = max(finished, key=lambda one: one[0])
    return ids[:-1] if ids[-1] == END else ids


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_beams_find_the_words_of_an_uncached_search(beams):
    found = DECODER.write(PROMPTS, Decoding("beam", beams, 1.0, 1.0), [0] * 4)
    assert found == [uncached_beams(prompt, beams) for prompt in PROMPTS]
    assert len({len(ids) for ids in found}) > 1


def test_the_nucleus_is_the_fewest_words_that_hold_top_p():
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    grid = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ids = nucleus_draw(scores.expand(1000, 4), 0.8, 1.0, grid)
    share = torch.bincount(ids, minlength=4) / 1000
    torch.testing.assert_close(share, torch.tensor([0.625, 0.375, 0.0, 0.0]), rtol=0, atol=2e-3)
    whole = torch.bincount(nucleus_draw(scores.expand(1000, 4), 1.0, 1.0, grid), minlength=4) / 1000
    torch.testing.assert_close(whole, scores.exp(), rtol=0, atol=2e-3)
    cold = nucleus_draw(scores.expand(1000, 4), 1.0, 0.01, grid)
    assert (cold == 0).all()
    order = nucleus_draw(scores.flip(0)[None], 0.01, 1.0, torch.tensor([0.999], dtype=torch.float64))
    assert order.tolist() == [3]


def test_drawing_first_leaves_the_gradient_under_autocast():
    DECODER.decoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        DECODER.write(PROMPTS, NUCLEUS, [1, 2, 3, 4])
        DECODER.nats(PROMPTS, TEXTS).mean().backward()
    maps = [part.weight.grad for part in DECODER.decoder.modules() if isinstance(part, nn.Linear)]
    assert all(grad is not None and bool(grad.abs().sum() > 0) for grad in maps)


def test_wrong_decoding_is_named():
    with pytest.raises(ValueError, match="'best'"):
        Decoding("best", 1, 1.0, 1.0)
    with pytest.raises(ValueError, match="top_p=0"):
        Decoding("nucleus", 1, 0, 1.0)
