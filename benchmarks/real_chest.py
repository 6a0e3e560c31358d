"""Trains R2Gen on real chest pictures with notes and prints what it writes of held-out ones, beside trivial rules.

    python -m benchmarks.real_chest [--data ../shared/realdata] [--steps 150] [--size 64] [--folds 4] [--seed 0]

The pictures are those of the covid-chestxray-dataset (covid_chestxray/metadata.csv, its column clinical_notes), which
are not ours to publish: nothing but the table of scores is printed, and what is trained lies in a temporary folder.
Few pictures are there, so every one is held out once: the published cases (column url; all pictures of a patient and
of an article lie in one) are dealt into folds, and each fold is written by a network that was trained on the others,
from nothing, at small widths. That is enough to see that real files go the whole way, from JPEG to scored report, and
how far a network gets beyond copying; it says nothing of R2Gen at its published size. Intervals draw reports, not
cases, and so are too narrow.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from medim.baselines import r2gen, trivial
from medim.baselines.base import TrainInputs
from medim.baselines.encoder_decoder_writer import EncoderDecoderSettings
from medim.baselines.r2gen_network import R2GenSizes
from medim.baselines.report_decoder import DecoderSizes
from medim.baselines.report_words import WordSettings
from medim.baselines.visual_extractor import ExtractorSettings
from medim.data.folder import FolderSource, import_folder, read_table
from medim.metrics.bootstrap import Estimate, bootstrap_mean
from medim.metrics.clinical import ce_rules_scores
from medim.metrics.estimate_text import estimate_text
from medim.metrics.java import Meteor
from medim.metrics.report_text import coco_scores, distinct_reports, length_ratio, nltk_scores, normalised
from medim.pairs import Pair, write_pairs
from medim.systems import Sample
from medim.training import Optimisation

DATA = Path("../shared/realdata")
FOLDER, TABLE, DATASET = "covid_chestxray", "metadata.csv", "chest"
PATIENT, CASE = "patientid", "url"
SHOWN = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "length_ratio", "distinct", "copied", "ce_rules_m")
RESAMPLES = 1000
Texts = dict[str, str]  # pair_id -> report


@dataclass(frozen=True)
class Held:
    """What one row wrote of every picture when it was held out, and the training reports that it had seen then."""

    said: Texts
    known: dict[str, Sequence[str]]


def settings(steps: int) -> EncoderDecoderSettings:
    """R2Gen at small widths."""
    optim = Optimisation(
        steps=steps, batch_size=8, accumulate=1, lr=2e-3, warmup=min(10, steps), restarts=1, weight_decay=0.01,
        beta1=0.9, beta2=0.98, clip=1.0, ema=0.0, precision="fp32", checkpoint_every=steps, validate_every=0,
        log_every=steps,
    )  # fmt: skip
    decoder = DecoderSizes(width=64, inner=128, heads=4, layers=1, dropout=0.1, feature_dropout=0.1)
    return EncoderDecoderSettings(
        ExtractorSettings(16, (16, 32, 64), (1, 1, 1), "basic", "unit"), R2GenSizes(decoder, 3, 4),
        WordSettings(1, "plain", 60, "cut"), 3, 1, None, None, (), optim,
    )  # fmt: skip


def real_pairs(data: Path, size: int) -> list[Pair]:
    """The pictures with their notes, `patient_id` being the published case.

    Raises:
        FileNotFoundError: there is no such folder or table.
        ValueError: a patient stands in two cases.
    """
    root = data / FOLDER
    rows, _ = read_table(root / TABLE)
    cases: dict[str, set[str]] = {}
    for row in rows:
        cases.setdefault(row[PATIENT], set()).add(row[CASE])
    twice = sorted(patient for patient, found in cases.items() if len(found) > 1)
    if twice:
        raise ValueError(
            f"{root / TABLE}: patients {', '.join(twice)} stand in two cases ({CASE}): folds would mix them"
        )
    source = FolderSource(
        root=str(root), table=TABLE, image_column="filename", image_folder="images", report_column="clinical_notes",
        patient_column=CASE, patient_characters=0, split_column="", prompt="chest x-ray", background="black",
        fit="pad", val=0.0, test=0.0,
    )  # fmt: skip
    pairs: list[Pair] = []
    import_folder(DATASET, source, size, 0, lambda _split, pair: pairs.append(pair), lambda _done: None)
    return pairs


def folds_of(pairs: Sequence[Pair], folds: int, seed: int) -> list[list[Pair]]:
    """Cases dealt into folds, the largest first, each to the fold that has the fewest pairs.

    Raises:
        ValueError: there are fewer cases than folds, or fewer than two folds.
    """
    cases: dict[str, list[Pair]] = {}
    for pair in pairs:
        cases.setdefault(pair.patient_id, []).append(pair)
    if not 2 <= folds <= len(cases):
        raise ValueError(f"folds must lie between 2 and the {len(cases)} cases, got {folds}")
    dealt: list[list[Pair]] = [[] for _ in range(folds)]
    order = sorted(cases, key=lambda case: (-len(cases[case]), hashlib.sha256(f"{seed}/{case}".encode()).hexdigest()))
    for case in order:
        min(dealt, key=len).extend(cases[case])
    return dealt


def answers(train: Sequence[Pair], test: Sequence[Pair], steps: int, seed: int, folder: Path) -> list[Sample]:
    """What R2Gen and the trivial rules, trained on `train`, write of `test`."""
    files = {DATASET: {"train": folder / "train.parquet", "val": folder / "val.parquet"}}
    write_pairs(files[DATASET]["train"], train)
    write_pairs(files[DATASET]["val"], [])
    found: list[Sample] = []
    for method, own in ((r2gen, asdict(settings(steps))), (trivial, {"fallback": {}})):
        name = method.METHOD.key
        out = folder / name
        method.train(
            TrainInputs(files, (DATASET,), own, seed, folder / f"{name}-work", out, lambda _step, _values: None)
        )
        seeds = [seed + number for number in range(len(test))]
        found += method.load_system(out).generate("image_to_report", DATASET, test, seeds)
    return found


def cross_validated(pairs: Sequence[Pair], folds: int, steps: int, seed: int) -> dict[str, Held]:
    """Row -> what it wrote of every picture while it was held out.

    Raises:
        ValueError: see `folds_of`.
    """
    rows: dict[str, Held] = {}
    dealt = folds_of(pairs, folds, seed)
    for number, test in enumerate(dealt):
        train = [pair for other, fold in enumerate(dealt) if other != number for pair in fold]
        reports = [pair.report for pair in train]
        with tempfile.TemporaryDirectory() as folder:
            for sample in answers(train, test, steps, seed, Path(folder)):
                held = rows.setdefault(sample.row, Held({}, {}))
                held.said[sample.pair_id] = sample.report or ""
                held.known[sample.pair_id] = reports
        print(f"fold {number + 1} of {folds}: {len(train)} pairs learned, {len(test)} written", flush=True)
    return rows


def scores_of(held: Held, true: Texts, meteor: Meteor, seed: int) -> dict[str, Estimate]:
    """Text metrics, labels by our rules, and how much is copied."""
    said = held.said
    scores = coco_scores(said, true, meteor, seed, RESAMPLES) | nltk_scores(said, true, seed, RESAMPLES)
    scores["length_ratio"] = length_ratio(said, true, seed, RESAMPLES)
    scores["distinct_reports"] = distinct_reports(list(said.values()), seed, RESAMPLES)
    copies = [is_copy(report, held.known[name]) for name, report in said.items()]
    scores["copied_from_train"] = bootstrap_mean(copies, seed, RESAMPLES)
    return scores | ce_rules_scores(said, true, seed, RESAMPLES)


def is_copy(report: str, known: Sequence[str]) -> float:
    """1.0 where a report equals one of those that were learned, as `copied_from_train` of report_text.py has it."""
    return float(normalised(report) in {normalised(one) for one in known} - {""})


def table(scores: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Markdown: metrics down, rows across, n in front."""
    rows = list(scores)
    metrics = [name for name in next(iter(scores.values())) if name.startswith(SHOWN)]
    lines = [["metric", "n", *rows], ["---", "---:", *["---:"] * len(rows)]]
    for metric in metrics:
        found = [scores[row][metric] for row in rows]
        lines.append([metric, str(found[0].n), *(estimate_text(*one) for one in found)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Iterable[str] | None = None) -> int:
    """Train, write, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder that holds {FOLDER}/{TABLE}")
    for name, value, words in (("steps", 150, "of training a fold"), ("size", 64, "pixels a side"),
                               ("folds", 4, "each held out once"), ("seed", 0, "of everything random")):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=words)
    given = parser.parse_args(None if arguments is None else list(arguments))
    if not (given.data / FOLDER / TABLE).is_file():
        print(f"{given.data / FOLDER / TABLE} is missing: give the folder that holds {FOLDER} as --data")
        return 1
    torch.set_num_threads(1)
    pairs = real_pairs(given.data, given.size)
    rows = cross_validated(pairs, given.folds, given.steps, given.seed)
    true = {pair.pair_id: pair.report for pair in pairs}
    with Meteor() as meteor:
        scores = {row: scores_of(held, true, meteor, given.seed) for row, held in rows.items()}
    cases = len({pair.patient_id for pair in pairs})
    print(f"\n{len(pairs)} pictures of {cases} published cases, {given.folds} folds, {given.steps} steps each\n")
    print(table(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
