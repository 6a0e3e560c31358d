"""Which text metric notices which error of a report? Drawn pairs answer it, since their reports can be written anew.

The reference is a pair's report. The right answer is another wording of the same scene, so that a metric has to look
through words; the wrong one is the right one with a single error, in one sentence, all else to the letter:

    side swapped      one sentence about a finding of one side speaks of the other side
    negation flipped  the sentence about a finding that is there denies it
    finding removed   the sentence about a finding that is there is missing
    finding added     a sentence about a finding that is not there is put in
    random report     the report of another patient instead
    constant sentence the commonest sentence of all references instead

A metric that takes language for facts drops as little for a swapped side as for another word.
Shapes: N pairs.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medim.data.domain import SIDES, Domain, Findings, labels_of, without_side
from medim.data.report_grammar import SLOT, ReportGrammar, capitalise, split_sentences, with_articles
from medim.metrics.bootstrap import Estimate, bootstrap_mean, bootstrap_sums, divide, not_measured
from medim.metrics.chest_labels import label_reports
from medim.metrics.findings import finding_values, merge_sides, pair_f1
from medim.metrics.java import Meteor, meteor_score, ptb_tokenize
from medim.metrics.label_scores import positives
from medim.metrics.report_sums import per_report_scores
from medim.metrics.report_text import NGRAM, bleu_of_sums, bleu_statistics
from medim.metrics.sides import exchange_sides
from medim.pairs import Pair

Floats = NDArray[np.float64]
WORD_SEEDS = ("word_seed", "words")  # keys of a scene that its wording is drawn from
RANDOM_REPORT, CONSTANT_SENTENCE = "random report", "constant sentence"
CE_RULES_OF_ONE = "ce_rules_f1_14 (one report)"
TASK, NOTICED, EFFECT = "report_errors", "noticed", "effect"  # in keys of metrics/report_errors.json


@dataclass(frozen=True)
class Told:
    """A right report, sentence by sentence with the findings that each states, and those of the scene.

    `start`: how its first sentence begins before it says anything ("compared with the prior study, "); whatever is done
    to the sentences, it stays where it is.
    """

    start: str
    sentences: tuple[str, ...]
    stated: tuple[Findings, ...]
    truth: Findings


@dataclass(frozen=True)
class ErrorRow:
    """How one metric takes one error; n = pairs that can have the error.

    Attributes:
        error, metric: names.
        right: mean score of the right reports.
        wrong: mean score of the same with the error.
        drops: share of pairs whose score is lower with the error; equal scores are no drop.
        effect: (right - wrong) / standard deviation within the two groups, Cohen's d; "not measured" where neither
            group varies.
    """

    error: str
    metric: str
    right: Estimate
    wrong: Estimate
    drops: Estimate
    effect: Estimate


def report_error_rows(
    pairs: Sequence[Pair], domain: Domain, meteor: Meteor, seed: int, resamples: int, ce_rules: bool = False
) -> list[ErrorRow]:
    """The table: every error that the domain can have, by every text metric of report_text.py and findings.py.

    BLEU and METEOR are those of single reports (the tables' are of all reports together).

    Args:
        pairs: N >= 2 drawn pairs of the domain, of two patients at least.
        domain: theirs; writes with a `ReportGrammar`.
        meteor: the running METEOR process.
        seed: of wordings, errors and bootstrap.
        resamples: bootstrap draws.
        ce_rules: whether CheXpert's labels by our rules are a metric too: of chest reports.

    Raises:
        ValueError: a pair was not drawn, or see the arguments.
    """
    grammar = _grammar(domain)
    scenes = [_scene(pair) for pair in pairs]
    if len({pair.patient_id for pair in pairs}) < 2:
        raise ValueError(f"errors of reports need pairs of two patients at least, got {len(pairs)} pairs of one")
    right = reworded(scenes, domain, seed)
    wrong = wrong_reports(pairs, right, domain, seed)
    there = {error: np.array([report is not None for report in reports]) for error, reports in wrong.items()}
    filled = {
        error: [old if new is None else new for old, new in zip(right, reports, strict=True)]
        for error, reports in wrong.items()
    }
    truth = [domain.truth(scene) for scene in scenes]
    scores = pair_metrics([pair.report for pair in pairs], truth, {"": right, **filled}, grammar, meteor, ce_rules)
    return [
        error_row(error, metric, good[there[error]], scores[error][metric][there[error]], seed, resamples)
        for error in wrong
        for metric, good in scores[""].items()
    ]


def error_row(error: str, metric: str, right: Floats, wrong: Floats, seed: int, resamples: int) -> ErrorRow:
    """One row from the scores (N,) of right and wrong reports, drawn together."""
    n = len(right)
    if n == 0:
        return ErrorRow(error, metric, *[not_measured(0)] * 4)

    def effect(sums: Floats) -> Floats:
        means = sums / n
        spread = (np.maximum(means[:, 2] - means[:, 0] ** 2, 0) + np.maximum(means[:, 3] - means[:, 1] ** 2, 0)) / 2
        spread = np.where(spread > 1e-18, spread, 0.0)  # rounding of a constant is no variance
        return divide(means[:, 0] - means[:, 1], np.sqrt(spread))

    moments = np.stack([right, wrong, right**2, wrong**2], axis=1)
    return ErrorRow(
        error,
        metric,
        bootstrap_mean(right, seed, resamples),
        bootstrap_mean(wrong, seed, resamples),
        bootstrap_mean(wrong < right - 1e-12, seed, resamples),
        bootstrap_sums(moments, effect, seed, resamples)[0],
    )


def error_scores(rows: Mapping[str, Sequence[ErrorRow]]) -> dict[str, dict[str, Estimate]]:
    """Error -> `<dataset>/report_errors/<metric>: noticed` (its drops) and `: effect`, of every error there is.

    Args:
        rows: dataset -> its table, see `report_error_rows`.
    """
    scores: dict[str, dict[str, Estimate]] = {error: {} for error in ERRORS}
    for dataset, table in rows.items():
        for row in table:
            place = f"{dataset}/{TASK}/{row.metric}"
            scores[row.error] |= {f"{place}: {NOTICED}": row.drops, f"{place}: {EFFECT}": row.effect}
    return scores


def reworded(scenes: Sequence[Mapping[str, Any]], domain: Domain, seed: int) -> list[str]:
    """Another wording of each scene's report.

    Raises:
        ValueError: a scene has no seed of its words.
    """
    reports = []
    for number, scene in enumerate(scenes):
        keys = [key for key in WORD_SEEDS if key in scene]
        if len(keys) != 1:
            raise ValueError(f"a scene of {domain.name} has none of the keys {WORD_SEEDS}: its wording cannot be drawn")
        draw = random.Random(f"wording {seed} {number}").randrange(1 << 31)
        reports.append(domain.report({**scene, keys[0]: draw}))
    return reports


def wrong_reports(
    pairs: Sequence[Pair], right: Sequence[str], domain: Domain, seed: int
) -> dict[str, list[str | None]]:
    """Error -> N reports with it, None where a pair cannot have it; errors that no pair can have are left out."""
    grammar = _grammar(domain)
    found: dict[str, list[str | None]] = {}
    told = [_told(report, grammar, domain.truth(_scene(pair))) for pair, report in zip(pairs, right, strict=True)]
    for error, damage in DAMAGES.items():
        draws = [random.Random(f"{error} {seed} {number}") for number in range(len(pairs))]
        found[error] = [_joined(one.start, damage(one, grammar, draw)) for one, draw in zip(told, draws, strict=True)]
    chooser = random.Random(f"{RANDOM_REPORT} {seed}")
    found[RANDOM_REPORT] = [
        chooser.choice([other.report for other in pairs if other.patient_id != pair.patient_id]) for pair in pairs
    ]
    sentences = Counter(sentence for pair in pairs for sentence in split_sentences(pair.report))
    commonest = min(sentences, key=lambda sentence: (-sentences[sentence], sentence))
    found[CONSTANT_SENTENCE] = [commonest] * len(pairs)
    return {error: reports for error, reports in found.items() if any(report is not None for report in reports)}


def _told(report: str, grammar: ReportGrammar, truth: Findings) -> Told:
    start = next((one for one in grammar.language.comparisons if report.startswith(capitalise(one))), "")
    sentences = tuple(split_sentences(capitalise(report[len(start) :])))
    return Told(start, sentences, tuple(grammar.read(sentence) for sentence in sentences), truth)


def _joined(start: str, sentences: Sequence[str] | None) -> str | None:
    if not sentences:
        return None if sentences is None else ""
    first = sentences[0][:1].lower() + sentences[0][1:] if start else sentences[0]
    return " ".join([capitalise(start + first), *sentences[1:]])


def _about(told: Told, draw: random.Random) -> int | None:
    """A sentence that states a finding which no other sentence states; None where there is none."""
    often = Counter(label for stated in told.stated for label in stated)
    places = [i for i, stated in enumerate(told.stated) if stated and all(often[label] == 1 for label in stated)]
    return draw.choice(places) if places else None


def _swap_side(told: Told, grammar: ReportGrammar, draw: random.Random) -> list[str] | None:
    """Only sentences about one label whose other side is free of the finding."""
    places = []
    for i, stated in enumerate(told.stated):
        side, _, name = next(iter(stated), "").partition(" ")
        other = SIDES[1 - SIDES.index(side)] if side in SIDES else ""
        if len(stated) == 1 and other and told.truth.get(f"{other} {name}", "absent") == "absent":
            places.append(i)
    if not places:
        return None
    place = draw.choice(places)
    return _replaced(told, place, [exchange_sides(told.sentences[place])])


def _flip_negation(told: Told, grammar: ReportGrammar, draw: random.Random) -> list[str] | None:
    place = _about(told, draw)
    if place is None:
        return None
    name = without_side(next(iter(told.stated[place])))
    return _replaced(told, place, [worded(grammar, name, "absent", "", draw)])


def _remove(told: Told, grammar: ReportGrammar, draw: random.Random) -> list[str] | None:
    place = _about(told, draw)
    return None if place is None else _replaced(told, place, [])


def _add(told: Told, grammar: ReportGrammar, draw: random.Random) -> list[str] | None:
    """A finding that is on no side."""
    there = {without_side(label) for label in told.truth}
    free = [label for label in labels_of(grammar.findings) if without_side(label) not in there]
    if not free:
        return None
    label = draw.choice(free)
    side = label.partition(" ")[0] if without_side(label) != label else ""
    sentences = list(told.sentences)
    sentences.insert(draw.randint(0, len(sentences)), worded(grammar, without_side(label), "present", side, draw))
    return sentences


Damage = Callable[[Told, ReportGrammar, random.Random], "list[str] | None"]
DAMAGES: dict[str, Damage] = {
    "side swapped": _swap_side, "negation flipped": _flip_negation, "finding removed": _remove, "finding added": _add,
}  # fmt: skip
ERRORS = (*DAMAGES, RANDOM_REPORT, CONSTANT_SENTENCE)


def _replaced(told: Told, place: int, new: Sequence[str]) -> list[str]:
    return [*told.sentences[:place], *new, *told.sentences[place + 1 :]]


def worded(grammar: ReportGrammar, name: str, state: str, side: str, draw: random.Random) -> str:
    """A sentence of the grammar about one finding; slots are filled at random."""
    phrases = grammar.phrases[name]

    def word(match: Any) -> str:
        if match[1] == "side":
            return side
        words = {**grammar.language.slots, **phrases.slots}[match[1]]
        every = [one for many in words.values() for one in many] if isinstance(words, Mapping) else list(words)
        return draw.choice(every)

    return capitalise(with_articles(SLOT.sub(word, draw.choice(list(phrases.templates(state))))))


def pair_metrics(
    reference: Sequence[str], truth: Sequence[Findings], answers: Mapping[str, Sequence[str]], grammar: ReportGrammar,
    meteor: Meteor, ce_rules: bool = False,
) -> dict[str, dict[str, Floats]]:  # fmt: skip
    """Name -> metric -> (N,) scores of single reports.

    `finding_f1` and `finding_f1_without_side` are the soft F1 of each pair's findings (`pair_f1`). METEOR (nltk) is
    left out where NLTK has no WordNet.

    Args:
        reference: N true reports.
        truth: their N findings.
        answers: name -> N reports that are scored.
        grammar: reads the findings of reports.
        meteor: the running METEOR process.
        ce_rules: adds CE_RULES_OF_ONE: F1 of the 14 labels that our rules read as positive in one report; of two
            reports without any it is 1.
    """
    labels, n = labels_of(grammar.findings), len(reference)
    tokens = ptb_tokenize([*reference, *(report for reports in answers.values() for report in reports)])
    true_tokens, true_values = tokens[:n], finding_values(truth, labels)
    scores: dict[str, dict[str, Floats]] = {}
    for number, (name, reports) in enumerate(answers.items(), start=1):
        said = tokens[number * n : (number + 1) * n]
        bleu = bleu_of_sums(bleu_statistics(said, true_tokens))
        found = {f"BLEU-{k + 1} (coco)": bleu[:, k] for k in range(NGRAM)}
        found["METEOR (coco)"] = meteor_score(meteor.statistics(said, true_tokens))
        found |= per_report_scores(reports, reference, said, true_tokens)
        values = finding_values([grammar.read(report) for report in reports], labels)
        found["finding_f1"] = pair_f1(true_values, values)
        found["finding_f1_without_side"] = pair_f1(merge_sides(true_values, labels)[0], merge_sides(values, labels)[0])
        if ce_rules:
            found[CE_RULES_OF_ONE] = labels_f1(reference, reports)
        scores[name] = found
    return scores


def labels_f1(reference: Sequence[str], reports: Sequence[str]) -> Floats:
    """(N,) F1 of the positive CheXpert labels of each report, see `pair_metrics`."""
    true, said = (positives(label_reports(list(texts)), uncertain=False) for texts in (reference, reports))
    hits, count = (true * said).sum(1), true.sum(1) + said.sum(1)
    return np.where(count == 0, 1.0, 2 * hits / np.maximum(count, 1))


def _grammar(domain: Domain) -> ReportGrammar:
    if not isinstance(domain.grammar, ReportGrammar):
        raise ValueError(f"{domain.name} writes its reports without a ReportGrammar: errors cannot be made in them")
    return domain.grammar


def _scene(pair: Pair) -> dict[str, Any]:
    if pair.scene is None:
        raise ValueError(f"pair {pair.pair_id!r} was not drawn: errors are made in reports of phantom pairs")
    return dict(json.loads(pair.scene))
