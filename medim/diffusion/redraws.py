"""Sentences that are taken back while a report is written from left to right, and drawn anew.

A sentence that was just finished is masked again, and the sampler goes on from where it began (whether the report ends
there is drawn anew with it: there may be nothing left to say), in two cases:

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
            settings: text_redraws, agreement_weight.
            value: how well halves agree; None: only repeats are taken back.
        """
        self.canvas, self.limit, self.weight, self.value = (
            canvas, settings.text_redraws, settings.agreement_weight, value,
        )  # fmt: skip
        self.accepted = torch.zeros(len(canvas.x), dtype=torch.int64)  # (B,) report tokens that are not judged again
        self.tries = torch.zeros(len(canvas.x), dtype=torch.int64)  # (B,) rejections of the sentence behind them

    def judge(self, rows: Tensor, u: Tensor) -> None:
        """Judge all sentences that were finished since the last call, each in its turn; take back what is rejected.

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
            waiting = [i for i, rejected in self._rejected(rows, reports, spans, u).items() if not rejected]

    def _rejected(
        self, rows: Tensor, reports: Sequence[Sequence[int]], spans: dict[int, slice], u: Tensor
    ) -> dict[int, bool]:  # fmt: skip
        """Judge a sentence `spans` of some reports: number in `rows` -> whether it was taken back."""
        what = torch.zeros(len(spans), self.canvas.x.shape[1], dtype=torch.bool, device=self.canvas.x.device)
        first = self.canvas.space.layout.text.start
        for mask, span in zip(what, spans.values(), strict=True):
            mask[first + span.start : first + span.stop] = True
        own = rows[list(spans)]
        chance = self._acceptance(own, what)
        out = {}
        for i, span, accept, sample in zip(spans, spans.values(), chance.tolist(), own.tolist(), strict=True):
            again = said_before(reports[i], span, self.canvas.space.last_characters)
            own_words = bool(self.canvas.initially[sample, first + span.start : first + span.stop].all())
            left = own_words and int(self.tries[sample]) < self.limit
            out[i] = left and (again or float(u[i, span.stop - 1]) >= accept)
            self.tries[sample] = self.tries[sample] + 1 if out[i] else 0
            if not out[i]:
                self.accepted[sample] = span.stop
        rejected = torch.tensor(list(out.values()), dtype=torch.bool, device=what.device)
        self.canvas.take_back(own, what & rejected[:, None])
        return out

    def _acceptance(self, rows: Tensor, what: Tensor) -> Tensor:
        """(b,) probability to accept the sentences `what` (b, L) by what they do to the agreement."""
        x = self.canvas.x[rows]
        without = x.masked_fill(what, self.canvas.space.mask_id)
        judged = one_half_is_whole(without, self.canvas.space)
        chance = torch.ones(len(rows), dtype=torch.float64, device=x.device)
        if self.value is None or not self.weight or not bool(judged.any()):
            return chance
        values = self.value(torch.stack([without[judged], x[judged]])).double()
        chance[judged] = (self.weight * (values[1] - values[0])).clamp(max=0).exp()
        return chance


def said_before(report: Sequence[int], span: slice, last_characters: Sequence[str]) -> bool:
    """Whether a whole sentence before `span` has the same ids; see `next_sentence` for the arguments."""
    earlier = whole_sentences(report[: span.start], last_characters)
    return any(report[one] == report[span] for one in earlier)
