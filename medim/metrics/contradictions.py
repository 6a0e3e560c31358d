"""Reports against themselves: sentences said twice, and findings that a report states and denies.

The reader of findings takes the strongest word on a finding, so a report that says "There is a pacemaker." and "No
pacemaker." counts as one with a pacemaker. No report that the grammar writes does either; a network's do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medim.data.domain import VALUE, Findings
from medim.data.report_grammar import ReportGrammar, capitalise, with_articles
from medim.data.report_reader import split_sentences
from medim.metrics.bootstrap import Estimate, bootstrap_ratio
from medim.metrics.findings import finding_scores


def repeated_sentences(reports: Sequence[str], seed: int, resamples: int) -> Estimate:
    """Share of the sentences that stood in their report before, to the letter, in [0, 1]; n = number of reports.

    The bootstrap draws reports, not sentences; an empty report counts as one sentence.
    """
    sentences = [split_sentences(report) for report in reports]
    again = [len(parts) - len(set(parts)) for parts in sentences]
    return bootstrap_ratio(again, [max(1, len(parts)) for parts in sentences], seed, resamples)


def self_agreement(
    reports: Sequence[str], truth: Sequence[Findings], labels: Sequence[str], grammar: ReportGrammar, seed: int,
    resamples: int,
) -> dict[str, Estimate]:  # fmt: skip
    """Whether N reports agree with themselves, and their finding F1 where what they contradict does not count.

    Args:
        reports: N reports.
        truth: findings that they are held against.
        labels: all labels of the domain.
        grammar: see `Denials`.
        seed: of the bootstrap over reports.
        resamples: its draws.

    Returns:
        `repeated_sentences`, `contradicted_findings`, and `uncontradicted_finding_f1`, the macro F1 with side of
        findings that a report states and does not deny; all in [0, 1].

    Raises:
        ValueError: the lists differ in length.
    """
    denials = Denials(grammar)
    kept = finding_scores(truth, [denials.uncontradicted(report) for report in reports], labels, seed, resamples)
    return {
        "repeated_sentences": repeated_sentences(reports, seed, resamples),
        "contradicted_findings": denials.contradicted(reports, seed, resamples),
        "uncontradicted_finding_f1": kept["finding_f1"],
    }


class Denials:
    """What the sentences of a grammar deny, to the letter; a sentence that it cannot write denies nothing here.

    Args:
        grammar: of the dataset that the reports are to be like.
    """

    def __init__(self, grammar: ReportGrammar) -> None:
        self.grammar = grammar
        language = grammar.language
        self._starts = tuple(map(capitalise, language.comparisons))
        self._denied: dict[str, frozenset[str]] = {}
        for phrases in language.phrases:
            for template in phrases.absent:
                self._add(grammar.expand(template, phrases.slots), phrases.finding.labels)
        for template, absent in language.statements:
            labels = [label for name in absent for label in grammar.phrases[name].finding.labels]
            self._add(grammar.expand(template, {}), labels)

    def _add(self, sentences: Iterable[str], labels: Sequence[str]) -> None:
        for sentence in map(with_articles, sentences):
            self._denied[sentence] = self._denied.get(sentence, frozenset()) | frozenset(labels)

    def of(self, report: str) -> frozenset[str]:
        """Labels that some sentence of a report denies."""
        found: set[str] = set()
        for sentence in split_sentences(report):
            start = next((start for start in self._starts if sentence.startswith(start)), "")
            plain = sentence.removeprefix(start)
            found |= self._denied.get(plain, frozenset()) | self._denied.get(plain[:1].lower() + plain[1:], frozenset())
        return frozenset(found)

    def uncontradicted(self, report: str) -> dict[str, str]:
        """Findings that a report states and does not deny; see `ReportGrammar.read`."""
        denied = self.of(report)
        return {label: state for label, state in self.grammar.read(report).items() if label not in denied}

    def contradicted(self, reports: Sequence[str], seed: int, resamples: int) -> Estimate:
        """Share of the findings stated by reports that the same report denies, in [0, 1]; n = number of reports.

        "Not measured" where no report states a finding.
        """
        stated = [_stated(self.grammar.read(report)) for report in reports]
        both = [len(labels & self.of(report)) for labels, report in zip(stated, reports, strict=True)]
        return bootstrap_ratio(both, list(map(len, stated)), seed, resamples)


def _stated(findings: Findings) -> frozenset[str]:
    return frozenset(label for label, state in findings.items() if VALUE[state] > 0)
