"""Sentences that are taken back while a report is written from left to right, and drawn anew.

A sentence that was just finished is masked again, and the sampler goes on from where it began (whether the report ends
there is drawn anew with it, if its length is not known: there may be nothing left to say), in two cases:

- it stood in the report before. No report of the training data says a sentence twice; a network that is trained for an
  hour does, in every second report of a chest film: what is left of a sentence once it has begun is nearly sure,
  whether it stands there already or not.
- report and picture agree less with it than without it, by d nats: then it is accepted with probability
  exp(agreement_weight d) only. Words are chosen by their agreement too (`value`), but which way a sentence goes is
  decided by its first word, when nothing is said that could agree; the whole sentence can be judged.

Both are rejection, one sentence at a time: what comes is the network's own law of the sentence, times the probability
that it is accepted. After `text_redraws` rejections of one sentence what comes stands. Not in the paper.

Letters: B samples, b of them unfinished, T report tokens, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medim.diffusion.canvas import Canvas
from medim.diffusion.settings import SamplerSettings
from medim.diffusion.value import Value, one_half_is_whole
from medim.tokenizers.sentences import next_sentence, whole_sentences


class Redraws:
    """Which sentences of a batch have been accepted, and how often the next one was drawn."""

    def __init__(self, canvas: Canvas, settings: SamplerSettings, value: Value | None) -> None:
        """Nothing is accepted yet.

        Args:
            canvas: whose reports are judged.
            settings: text_redraws, agreement_weight, text_length.
            value: how well halves agree; None: only repeats are taken back.
        """
        self.canvas, self.limit, self.weight, self.value = (
            canvas, settings.text_redraws, settings.agreement_weight, value,
        )  # fmt: skip
        self.length_first = settings.text_length == "first"
        self.accepted = torch.zeros(len(canvas.x), dtype=torch.int64)  # (B,) report tokens that are not judged again
        self.tries = torch.zeros(len(canvas.x), dtype=torch.int64)  # (B,) rejections of the sentence behind them

    def judge(self, rows: Tensor, u: Tensor) -> None:
        """Judge all sentences that were finished since the last call, each in its turn; take back what is rejected.

        What was drawn behind a rejected sentence, where several words come at once, is taken back with it.

        Args:
            rows: (b,) samples.
            u: (b, L) uniform numbers of this step; a sentence takes that of its last token.
        """
        text, chars = self.canvas.space.layout.text, self.canvas.space.last_characters
        reports, u = self.canvas.x[rows, text].tolist(), u[:, text].cpu()
        waiting = list(range(len(rows)))
        while waiting:
            found = {i: next_sentence(reports[i], int(self.accepted[rows[i]]), chars) for i in waiting}
            spans = {i: span for i, span in found.items() if span is not None}
            waiting = self._judge_next(rows, reports, spans, u)

    def _judge_next(
        self, rows: Tensor, reports: Sequence[Sequence[int]], spans: dict[int, slice], u: Tensor
    ) -> list[int]:
        """Judge the sentences `spans`, number in `rows` -> where it stands; the numbers of those that were accepted."""
        again = {i: said_before(reports[i], span, self.canvas.space.last_characters) for i, span in spans.items()}
        loose = {i: self._can_go(int(rows[i]), span) for i, span in spans.items()}
        asked = [i for i in spans if loose[i] and not again[i]]
        chance = dict(zip(asked, self._acceptance(rows[asked], [spans[i] for i in asked]), strict=True))
        kept = []
        for i, span in spans.items():
            sample = int(rows[i])
            if loose[i] and (again[i] or float(u[i, span.stop - 1]) >= chance[i]):
                self.tries[sample] += 1
                self._take_back(sample, span.start)
            else:
                self.tries[sample], self.accepted[sample] = 0, span.stop
                kept.append(i)
        return kept

    def _can_go(self, sample: int, span: slice) -> bool:
        """Whether a sentence was drawn here, no part of it given, and not too often."""
        own = self.canvas.initially[sample, self.canvas.space.layout.text][span]
        return int(self.tries[sample]) < self.limit and bool(own.all())

    def _take_back(self, sample: int, start: int) -> None:
        """Make the report from token `start` on unknown, but for a length that was drawn before the words."""
        canvas, text = self.canvas, self.canvas.space.layout.text
        what = torch.zeros(1, canvas.x.shape[1], dtype=torch.bool, device=canvas.x.device)
        what[:, text.start + start : text.stop] = True
        if self.length_first:
            what &= canvas.x[sample] != canvas.space.eos_id
        canvas.take_back(torch.tensor([sample], device=canvas.x.device), what)

    def _acceptance(self, rows: Tensor, spans: Sequence[slice]) -> list[float]:
        """Of each sample (b,) the probability that its sentence is accepted, by what it does to the agreement."""
        chance = torch.ones(len(rows), dtype=torch.float64, device=self.canvas.x.device)
        if self.value is None or not self.weight or not len(rows):
            return chance.tolist()
        x = self.canvas.x[rows]
        without = x.clone()
        for report, span in zip(without[:, self.canvas.space.layout.text], spans, strict=True):
            report[span] = self.canvas.space.mask_id
        judged = one_half_is_whole(without, self.canvas.space)
        if bool(judged.any()):
            values = self.value(torch.stack([without[judged], x[judged]])).double()
            chance[judged] = (self.weight * (values[1] - values[0])).clamp(max=0).exp()
        return chance.tolist()


def said_before(report: Sequence[int], span: slice, last_characters: Sequence[str]) -> bool:
    """Whether a whole sentence before `span` has the same ids; see `next_sentence` for the arguments."""
    earlier = whole_sentences(report[: span.start], last_characters)
    return any(report[one] == report[span] for one in earlier)
