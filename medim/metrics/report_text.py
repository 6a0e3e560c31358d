"""Text metrics of generated reports, by two protocols that are never mixed; the protocol stands in each metric's name.

`coco`: pycocoevalcap after its PTB tokenizer: corpus BLEU-1..4, corpus METEOR 1.5, mean ROUGE-L (beta 1.2), mean CIDEr.
`nltk`: the official script (UCSC-VLAA/MeDiM, report_metric.py): mean sentence BLEU-1..4 (NLTK, smoothing method 1),
mean ROUGE-L F1 of PyPI `rouge`, mean METEOR of NLTK, on lower-cased text with full stops split off.

Deviations, both protocols: an empty report scores 0 on every metric (the official script leaves it out, pycocoevalcap
gives 1 to empty against empty); white space, line breaks too, is one blank (a line break shifts pycocoevalcap's
captions and glues the official script's words). Prompts must have been stripped from both sides (`split_prompt`).
Intervals: medim.metrics.bootstrap over reports; CIDEr's document frequencies stay those of the full set.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medim.data.report_text import one_line
from medim.metrics.bootstrap import Estimate, bootstrap_mean, bootstrap_ratio, bootstrap_sums, not_measured
from medim.metrics.java import Meteor, addable, meteor_score, ptb_tokenize

Reports = Mapping[str, str]  # pair_id -> report, without its prompt
Floats = NDArray[np.float64]

NGRAM = 4
NLTK_WEIGHTS = tuple(tuple([1 / n] * n) for n in range(1, NGRAM + 1))
SMALL, TINY = 1e-9, 1e-15  # pycocoevalcap's guards against 0 / 0
NAMED = 5  # ids that an error shows


def paired(generated: Reports, reference: Reports) -> tuple[list[str], list[str]]:
    """Generated and reference reports in one order (of sorted ids), as one line each.

    Raises:
        ValueError: an id is on one side only, or there is no report at all.
    """
    missing, extra = sorted(reference.keys() - generated.keys()), sorted(generated.keys() - reference.keys())
    if missing or extra:
        found = [f"{len(ids)} {what} ({_some(ids)})" for ids, what in ((missing, "missing"), (extra, "extra")) if ids]
        raise ValueError(f"generated reports do not fit the reference: {', '.join(found)}: run `dvc repro generate`")
    if not reference:
        raise ValueError("there are no reports to score: run `dvc repro generate`")
    ids = sorted(reference)
    return [one_line(generated[i]) for i in ids], [one_line(reference[i]) for i in ids]


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def coco_scores(
    generated: Reports, reference: Reports, meteor: Meteor, seed: int, resamples: int
) -> dict[str, Estimate]:
    """BLEU-1..4, METEOR, ROUGE-L and CIDEr of pycocoevalcap, keys like "BLEU-1 (coco)".

    Args:
        generated: pair_id -> generated report.
        reference: pair_id -> true report, same ids.
        meteor: the running METEOR process, one for all calls of a program.
        seed: seed of the bootstrap.
        resamples: draws of the bootstrap.

    Raises:
        ValueError: see `paired`.
    """
    said, true = paired(generated, reference)
    tokens = ptb_tokenize([*said, *true])
    said, true = tokens[: len(said)], tokens[len(said) :]
    bleu = bootstrap_sums(bleu_statistics(said, true), bleu_of_sums, seed, resamples)
    statistics = meteor.statistics(said, true)
    scores = {f"BLEU-{n} (coco)": one for n, one in enumerate(bleu, start=1)}
    scores["METEOR (coco)"] = bootstrap_sums(addable(statistics), meteor_score, seed, resamples)[0]
    scores["ROUGE-L (coco)"] = bootstrap_mean(coco_rouge(said, true), seed, resamples)
    scores["CIDEr (coco)"] = bootstrap_mean(coco_cider(said, true), seed, resamples)
    return scores


def bleu_statistics(generated: Sequence[str], reference: Sequence[str]) -> Floats:
    """Tokenised reports -> (N, 10): matched n-grams (4), generated n-grams (4), generated and reference length."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=NGRAM)
    for said, true in zip(generated, reference, strict=True):
        scorer += (said, [true])
    rows = [[*one["correct"], *one["guess"], one["testlen"], one["reflen"][0]] for one in scorer.ctest]
    return np.array(rows, dtype=np.float64)


def bleu_of_sums(sums: Floats) -> Floats:
    """Corpus BLEU-1..4 of summed `bleu_statistics`: (b, 10) -> (b, 4) in [0, 1], with pycocoevalcap's constants."""
    correct, guess, length, true_length = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
    products = np.cumprod((correct + TINY) / (guess + SMALL), axis=1)
    ratio = (length + TINY) / (true_length + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return products ** (1 / np.arange(1, NGRAM + 1)) * brevity[:, None]


def coco_rouge(generated: Sequence[str], reference: Sequence[str]) -> Floats:
    """ROUGE-L of each pair of tokenised reports, (N,) in [0, 1]."""
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    pairs = zip(generated, reference, strict=True)
    return np.array([rouge.calc_score([said], [true]) if said else 0.0 for said, true in pairs])


def coco_cider(generated: Sequence[str], reference: Sequence[str]) -> Floats:
    """CIDEr-D of each pair of tokenised reports, (N,) in [0, 10]; document frequencies are those of the references."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    if not any(reference):
        return np.zeros(len(reference))  # no n-gram has a document frequency
    scorer = CiderScorer(n=NGRAM)
    for said, true in zip(generated, reference, strict=True):
        scorer += (said, [true])
    _, scores = scorer.compute_score()
    return np.asarray(scores, dtype=np.float64)


def nltk_scores(generated: Reports, reference: Reports, seed: int, resamples: int) -> dict[str, Estimate]:
    """The official script's BLEU-1..4, METEOR and ROUGE-L, keys like "BLEU-1 (nltk)".

    METEOR needs NLTK's WordNet data, which ./setup installs; without it, it is "not measured".

    Args:
        generated: pair_id -> generated report.
        reference: pair_id -> true report, same ids.
        seed: seed of the bootstrap.
        resamples: draws of the bootstrap.

    Raises:
        ValueError: see `paired`.
    """
    said, true = paired(generated, reference)
    bleu, wordnet = nltk_bleu(said, true), load_wordnet()
    scores = {f"BLEU-{n + 1} (nltk)": bootstrap_mean(bleu[:, n], seed, resamples) for n in range(NGRAM)}
    scores["METEOR (nltk)"] = (
        not_measured(len(said))
        if wordnet is None
        else bootstrap_mean(nltk_meteor(said, true, wordnet), seed, resamples)
    )
    scores["ROUGE-L (nltk)"] = bootstrap_mean(nltk_rouge(said, true), seed, resamples)
    return scores


def nltk_tokens(report: str) -> list[str]:
    """The official script's words: lower case, full stops split off, split at blanks."""
    return report.lower().replace(".", " .").split()


def nltk_bleu(generated: Sequence[str], reference: Sequence[str]) -> Floats:
    """Sentence BLEU-1..4 of each pair, (N, 4) in [0, 1]."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smoothing = SmoothingFunction().method1
    pairs = [(nltk_tokens(said), nltk_tokens(true)) for said, true in zip(generated, reference, strict=True)]
    scores = [
        sentence_bleu([true], said, weights=NLTK_WEIGHTS, smoothing_function=smoothing) if said else [0.0] * NGRAM
        for said, true in pairs
    ]
    return np.array(scores, dtype=np.float64)


def nltk_rouge(generated: Sequence[str], reference: Sequence[str]) -> Floats:
    """ROUGE-L F1 of PyPI `rouge` of each pair, (N,) in [0, 1]; 0 where one side holds nothing but full stops."""
    from rouge import Rouge

    rouge = Rouge(metrics=["rouge-l"])
    pairs = [(said.lower(), true.lower()) for said, true in zip(generated, reference, strict=True)]
    longest = max(len(said.split()) + len(true.split()) for said, true in pairs)
    with _recursion(longest):
        return np.array(
            [rouge.get_scores(*pair)[0]["rouge-l"]["f"] if all(map(_says, pair)) else 0.0 for pair in pairs]
        )


def _says(report: str) -> bool:
    """Whether something stands between the full stops; `rouge` raises an error where nothing does."""
    return bool(report.replace(".", "").strip())


@contextmanager
def _recursion(depth: int) -> Iterator[None]:
    """Room for `depth` more calls: `rouge` walks back through two reports by recursion, one call a word."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 2 * depth)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def nltk_meteor(generated: Sequence[str], reference: Sequence[str], wordnet: Any) -> Floats:
    """NLTK's METEOR of each pair, (N,) in [0, 1]. `wordnet`: a reader with `synsets(word)`, see `load_wordnet`."""
    from nltk.translate.meteor_score import single_meteor_score

    pairs = [(nltk_tokens(said), nltk_tokens(true)) for said, true in zip(generated, reference, strict=True)]
    scores = [
        single_meteor_score(hypothesis=said, reference=true, wordnet=wordnet) if said else 0.0 for said, true in pairs
    ]
    return np.array(scores, dtype=np.float64)


def load_wordnet() -> Any | None:
    """NLTK's WordNet reader, or None where its data is not installed."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet


def normalised(report: str) -> str:
    """Lower-cased words and numbers of a report: what stays when two reports differ in case or punctuation only."""
    return " ".join(re.findall(r"\w+(?:[.,]\d+)*", report.lower()))


def length_ratio(generated: Reports, reference: Reports, seed: int, resamples: int) -> Estimate:
    """Words of all generated reports / words of all references; 1 is right, 0 is silence.

    Raises:
        ValueError: see `paired`.
    """
    said, true = paired(generated, reference)
    words = [[len(report.split()) for report in side] for side in (said, true)]
    return bootstrap_ratio(words[0], words[1], seed, resamples)


def distinct_reports(generated: Sequence[str], seed: int, resamples: int) -> Estimate:
    """Number of different reports / number of reports, in (0, 1], after `normalised`.

    It is the mean over reports of 1 / (copies of that report); the interval draws these terms. (Counting the different
    ones among N drawn with replacement would give at most 63 % even where all differ.)
    """
    return bootstrap_mean(one_over_copies([normalised(report) for report in generated]), seed, resamples)


def one_over_copies(items: Sequence[Any]) -> Floats:
    """1 / (how often the item occurs) for each item, (N,): the sum is the number of different items."""
    copies = Counter(items)
    return np.array([1 / copies[item] for item in items], dtype=np.float64)


def copied_from_train(generated: Sequence[str], train: Collection[str], seed: int, resamples: int) -> Estimate:
    """Share of generated reports that equal a training report after `normalised`; an empty report is no copy."""
    known = {normalised(report) for report in train} - {""}
    return bootstrap_mean([float(normalised(report) in known) for report in generated], seed, resamples)
