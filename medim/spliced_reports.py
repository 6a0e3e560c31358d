"""Reports that are wrong in one sentence: what contrastive training shows beside other patients' reports.

Reports of other patients differ from a picture's own in everything, so to tell them apart it is enough to read half of
each. What a sampler asks is finer: does this one sentence belong to the picture? So to every report of a batch comes a
copy with one sentence too many, which no picture has as its own. (Hard negatives that change the text in one place:
Yuksekgonul et al. 2023, arXiv:2210.01936, Sec. 4, for words; here whole sentences.) A sentence of another report may be
true of this picture as well, "no pneumothorax" often is; such copies are noise. Not in the paper.

Letters: B reports of one dataset, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medim.tokenizers.sentences import whole_sentences

SAID_TWICE = 0.15  # share of the copies whose further sentence is one of their own
ONE_LEFT_OUT = 0.4  # share of the copies that lose a sentence, so that length does not give them away


def spliced(reports: Tensor, last_characters: Sequence[str], eos: int, generator: torch.Generator) -> Tensor:
    """(B, T) copies of reports (B, T), each with a further sentence somewhere behind its prompt.

    The sentence is that of another report of the batch (its prompt only where it has nothing else), or the report's
    own, said twice. What does not fit is cut off, an EOS stands at the end. A copy that would be the report itself, in
    another order or not (the sentence that is left out is the one that comes), says one twice instead; it is the report
    itself only where that does not fit.

    Args:
        reports: clean ids, EOS to the end.
        last_characters: see TextTokenizer.last_characters.
        eos: id that ends and pads.
        generator: on the CPU.

    Raises:
        ValueError: there is one report only, so no other to take a sentence from.
    """
    rows = [sentences_of(report, last_characters, eos) for report in reports.tolist()]
    if len(rows) < 2:
        raise ValueError(
            "a sentence of another report needs two reports of each dataset, got 1: raise pretrain_towers.optim."
            "batch_size, or that dataset's pairs (params.yaml)"
        )
    u = torch.rand(len(rows), 6, generator=generator, dtype=torch.float64).tolist()
    out = torch.full_like(reports, eos)
    most = reports.shape[1] - 1
    for number, (own, (who, which, where, twice, less, lost)) in enumerate(zip(rows, u, strict=True)):
        other = rows[(number + 1 + int(who * (len(rows) - 1))) % len(rows)]
        new = one_of(own if twice < SAID_TWICE else other, which)
        at = 1 + int(where * len(own))
        kept = list(range(len(own)))
        if less < ONE_LEFT_OUT and len(own) > 2:
            kept.remove(1 + int(lost * (len(own) - 1)))
        ids = joined([own[i] for i in kept if i < at], new, [own[i] for i in kept if i >= at], most)
        if sorted(ids) == sorted(joined(own, [], [], most)):
            ids = joined(own[:at], one_of(own, which), own[at:], most)
        out[number, : len(ids)] = torch.tensor(ids)
    return out


def sentences_of(report: Sequence[int], last_characters: Sequence[str], eos: int) -> list[list[int]]:
    """The sentences of a report without its end; what stands behind the last whole one is one too."""
    words = list(report[: report.index(eos)] if eos in report else report)
    spans = whole_sentences(words, last_characters)
    rest = words[spans[-1].stop if spans else 0 :]
    return [words[span] for span in spans] + ([rest] if rest or not spans else [])


def one_of(sentences: Sequence[list[int]], u: float) -> list[int]:
    """A sentence behind the prompt, or the prompt where it stands alone; u in [0, 1)."""
    behind = sentences[1:] or sentences
    return behind[int(u * len(behind))]


def joined(before: Sequence[list[int]], new: list[int], behind: Sequence[list[int]], most: int) -> list[int]:
    """The first `most` ids of sentences with a new one between them."""
    return [id_ for part in (*before, new, *behind) for id_ in part][:most]
