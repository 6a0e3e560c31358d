"""Readers of known skill, who fill in sheets as the page of a study exports them."""

import csv

import numpy as np

from medim.metrics.reader_questions import AGREEMENT, ERRORS, GENERATED, ORIGIN, REAL, sheet_columns
from medim.metrics.reader_sheet import Case, Key, read_ratings

QUESTIONS = (AGREEMENT, ORIGIN, ERRORS[2])
SYSTEM = "MeDiM"


def make_key(systems, datasets, each, repeats=0, questions=QUESTIONS, matched=False):
    """`each` cases of every system and dataset."""
    places = [(s, d, i) for s in systems for d in datasets for i in range(each)]
    cases = {
        f"{number:04d}": Case(system, dataset, f"{dataset}-{i}" if matched else "", {"seed": i})
        for number, (system, dataset, i) in enumerate(places)
    }
    return Key("0123456789abcdef", questions, repeats, cases)


def row_of(key, reader, order, case, number, answers):
    row = dict.fromkeys(sheet_columns(key.questions), "")
    fixed = {"study": key.study, "reader": reader, "years": "9", "device": "800x600@1", "order": order, "case": case,
             "pass": number, "seconds": "2.5"}  # fmt: skip
    return row | fixed | answers


def write_sheet(path, key, reader, answer, again=()):
    """A whole sheet; `answer(case, pass)` -> {question id: value}."""
    showings = [(case, 1) for case in key.cases] + [(case, 2) for case in again]
    rows = [row_of(key, reader, i + 1, case, number, answer(case, number)) for i, (case, number) in enumerate(showings)]
    return write_rows(path, rows)


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def detecting(rng, key, d_prime, criterion=0.0):
    """Says generated where the evidence, N(d'/2, 1) of generated and N(-d'/2, 1) of real ones, is above a criterion."""

    def answer(case, _number):
        middle = d_prime / 2 if key.cases[case].system != REAL else -d_prime / 2
        said = GENERATED if rng.normal(middle) > criterion else REAL
        return {ORIGIN.id: said, AGREEMENT.id: "3"}

    return answer


def rating(rng, key, effects, thresholds=(-2.0, -0.7, 0.5, 1.8)):
    """Agreement by the cumulative-link model, with an effect a system, in log odds."""

    def answer(case, _number):
        latent = rng.logistic() + effects[key.cases[case].system]
        return {AGREEMENT.id: str(1 + int(np.searchsorted(thresholds, latent))), ORIGIN.id: GENERATED}

    return answer


def study(folder, key, answers, again=()):
    """Ratings of readers r0, r1, ...; their sheets go through the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        write_sheet(folder / f"r{number}.csv", key, f"r{number}", answer, again)
        for number, answer in enumerate(answers)
    ]
    return read_ratings(paths, key)
