"""Prints how much faster reports are written with kept keys and values than by reading the whole text at every word.

python -m benchmarks.report_decoding [--threads 2] [--batch 4] [--length 100]

R2Gen at its published sizes, random weights and features of 7 x 7 patches, beam search: the reference reads the whole
text of every beam again at each word and goes on to the last word, as the published code does; both must write the same
words. R2GenCMN's memory: keys and values made once a batch against once for every study, patches and 60 words; forward
alone, and with gradients as in training, where the reference needs gigabytes of memory.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from medim.baselines.beam_search import beam_search
from medim.baselines.published_r2gen import R2GEN, R2GEN_CMN
from medim.baselines.r2gen_cmn_network import CMNNetwork, CMNSizes, SharedMemory
from medim.baselines.r2gen_network import R2GenNetwork, R2GenSizes
from medim.baselines.report_decoder import EncoderDecoder
from medim.baselines.report_words import EDGE
from medim.baselines.visual_extractor import Features

NUM_IDS = 4336  # words of MIMIC-CXR at threshold 10, and 0
PATCHES, MEMORY_WORDS = 49, 60
GOALS = {"r2gen": 15.0, "r2gen_cmn": 5.0, "memory": 5.0, "memory in training": 5.0}  # times
ROUNDS = 3


@dataclass(frozen=True)
class Comparison:
    """Seconds of the reference and of ours, and whether their answers are the same."""

    reference: float
    ours: float
    equal: bool

    @property
    def ratio(self) -> float:
        """How many times faster ours is."""
        return self.reference / self.ours


@torch.no_grad()
def uncached_beam_search(
    network: EncoderDecoder, features: Features, *, beams: int, max_length: int
) -> list[tuple[int, ...]]:
    """The best text of each study, reading every prefix whole; nothing is kept but the encoded patches.

    Finished beams are kept out by a score of -1000, as in cuhksz-nlp/R2Gen, and no text stops before `max_length`.
    """
    projected = network.project()
    encoded = network.encode(features, projected)
    batch = len(encoded)
    finished: list[list[tuple[float, tuple[int, ...]]]] = [[] for _ in range(batch)]
    texts, scores, rows = torch.full((batch, 1, 1), EDGE), torch.zeros(batch, 1), 1
    for length in range(1, max_length + 1):
        state = network.open(encoded.repeat_interleave(rows, 0), None, projected)
        logits, _ = network(texts.flatten(0, 1), state)
        log_p = logits[:, -1].float().log_softmax(-1).view(batch, rows, -1)
        scores, chosen = (scores[..., None] + log_p).flatten(1).topk(beams)
        parents, words = chosen // log_p.shape[-1], chosen % log_p.shape[-1]
        texts = torch.stack([texts[b, parents[b]] for b in range(batch)])
        texts, rows = torch.cat([texts, words[..., None]], -1), beams
        for b in range(batch):
            for k in range(beams):
                if words[b, k] == EDGE or length == max_length:
                    answer = tuple(texts[b, k, 1:].tolist())
                    finished[b].append((float(scores[b, k]), answer[:-1] if answer[-1] == EDGE else answer))
                    scores[b, k] -= 1000
    return [max(one, key=lambda found: found[0])[1] for one in finished]


def compare_decoding(
    sizes: R2GenSizes | CMNSizes, *, features: int, patches: int, num_ids: int, batch: int, beams: int, length: int
) -> Comparison:
    """Both ways of writing, on the same random weights and features."""
    torch.manual_seed(0)
    network = (
        R2GenNetwork(sizes, features, num_ids)
        if isinstance(sizes, R2GenSizes)
        else CMNNetwork(sizes, features, num_ids)
    ).eval()
    seen = Features(torch.randn(batch, patches, features).relu(), None)

    def cached() -> list[tuple[int, ...]]:
        state, first = network.start(seen), torch.full((batch,), EDGE)
        found = beam_search(network, state, first, end=EDGE, beams=beams, max_length=length)
        return [one.tokens for one in found]

    with torch.no_grad():
        cached()
        ours, written = timed(cached)
        reference, expected = timed(lambda: uncached_beam_search(network, seen, beams=beams, max_length=length))
    return Comparison(reference, ours, written == expected)


def timed(function: Callable[[], list[tuple[int, ...]]]) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds and answer."""
    started = time.perf_counter()
    answer = function()
    return time.perf_counter() - started, answer


def answer_per_study(memory: SharedMemory, x: Tensor) -> Tensor:
    """(B, T, D) -> (B, T, D): the memory's answers with its keys and values made anew for each study."""
    slots = memory.slots.expand(len(x), -1, -1)
    query, keys, values = (
        one(source).unflatten(-1, (memory.heads, -1)).transpose(1, 2)
        for one, source in ((memory.query, x), (memory.key, slots), (memory.value, slots))
    )
    best, chosen = (query @ keys.transpose(-2, -1) / math.sqrt(query.shape[-1])).topk(memory.top)
    index = chosen[..., None].expand(-1, -1, -1, -1, values.shape[-1])
    seen = values[:, :, None].expand(-1, -1, x.shape[1], -1, -1).gather(3, index)
    found = (best.softmax(-1)[..., None, :] @ seen).squeeze(-2)
    answer: Tensor = memory.out(found.transpose(1, 2).flatten(2))
    return answer


def compare_memory(sizes: CMNSizes, *, patches: int, words: int, batch: int, training: bool) -> Comparison:
    """Answers to patches and to words of one batch, in training with gradients; the fastest of ROUNDS rounds each."""
    torch.manual_seed(0)
    width = sizes.decoder.width
    memory = SharedMemory(width, sizes.slots, sizes.top, sizes.decoder.heads, 0.0)
    memory.init_weights()
    asked = torch.randn(batch, patches, width), torch.randn(batch, words, width)

    def shared() -> list[Tensor]:
        projected = memory.project()
        return [memory(x, projected) for x in asked]

    def per_study() -> list[Tensor]:
        return [answer_per_study(memory, x) for x in asked]

    def seconds(way: Callable[[], list[Tensor]]) -> float:
        memory.zero_grad()
        started = time.perf_counter()
        answers = way()
        if training:
            torch.stack([one.sum() for one in answers]).sum().backward()
        return time.perf_counter() - started

    with torch.set_grad_enabled(training):
        rounds = [(seconds(per_study), seconds(shared)) for _ in range(ROUNDS)]
        gaps = torch.cat([(a - b).abs().flatten(0, 1).amax(-1) for a, b in zip(shared(), per_study(), strict=True)])
    # which of two nearly equal slots is among the best, rounding decides: such answers differ a little
    same = bool((gaps < 1e-3).all()) and float((gaps < 1e-5).float().mean()) > 0.98
    reference, ours = (min(times) for times in zip(*rounds, strict=True))
    return Comparison(reference, ours, same)


def main() -> None:
    """One line for each comparison; exit code 1 where answers differ or a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("threads", 2), ("batch", 4), ("length", 100)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    assert isinstance(R2GEN_CMN.network, CMNSizes)
    found = {}
    for published in (R2GEN, R2GEN_CMN):
        name = f"{published.method}: beam {published.beams}, {given.length} words, batch {given.batch}"
        found[name] = GOALS[published.method], compare_decoding(
            published.network, features=published.extractor.width, patches=PATCHES, num_ids=NUM_IDS, batch=given.batch,
            beams=published.beams, length=given.length,
        )  # fmt: skip
        print(line(name, *found[name]), flush=True)
    for training in (False, True):
        way = "memory in training" if training else "memory"
        name = f"{R2GEN_CMN.method}: {way}, {PATCHES} patches, {MEMORY_WORDS} words, batch {given.batch}"
        comparison = compare_memory(
            R2GEN_CMN.network, patches=PATCHES, words=MEMORY_WORDS, batch=given.batch, training=training
        )
        found[name] = GOALS[way], comparison
        print(line(name, *found[name]), flush=True)
    if not all(comparison.equal for _, comparison in found.values()):
        raise SystemExit("the answers differ")
    if short := [name for name, (goal, comparison) in found.items() if comparison.ratio < goal]:
        raise SystemExit(f"short of the goal: {'; '.join(short)}")


def line(name: str, goal: float, found: Comparison) -> str:
    """What is printed of a comparison."""
    return (
        f"{name:62} {found.reference:8.3f} s -> {found.ours:7.3f} s  {found.ratio:6.1f}x (goal {goal:.0f}x)  "
        f"answers equal: {found.equal}{'' if found.ratio >= goal else ', SHORT OF THE GOAL'}"
    )


if __name__ == "__main__":
    main()
