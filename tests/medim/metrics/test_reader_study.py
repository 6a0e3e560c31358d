import numpy as np
import pytest
from scipy.stats import mannwhitneyu, wilcoxon
from simulated_readers import detecting, make_key, rating, study

from medim.metrics.reader_questions import AGREEMENT, ERRORS, ORIGIN
from medim.metrics.reader_study import (
    ALL,
    MATCHED,
    UNMATCHED,
    agreement,
    compare_systems,
    crossed_bootstrap,
    detection,
    mean_rating,
    numbers_of,
    system_scores,
)

SIDE = ERRORS[2].id
DRAWS = {"seed": 1, "resamples": 400}


def test_means_and_shares_of_a_system(tmp_path):
    key = make_key(("MeDiM", "UniDisc"), ("chest", "slides"), 4)

    def answer(points):
        def of(case, _number):
            good = key.cases[case].system == "MeDiM"
            return {AGREEMENT.id: str(points[good]), ORIGIN.id: "real" if good else "generated",
                    SIDE: "" if good else "significant"}  # fmt: skip

        return of

    scores = system_scores(study(tmp_path, key, [answer((2, 5)), answer((1, 4))]), "joint", **DRAWS)
    assert set(scores) == {"MeDiM", "UniDisc"}
    medim = scores["MeDiM"]
    assert medim["chest/joint/human agreement"][:1] + medim["chest/joint/human agreement"][3:] == (4.5, 4)
    assert scores["UniDisc"]["slides/joint/human agreement"].value == 1.5
    assert medim["chest/joint/human origin (real)"].value == 1
    assert scores["UniDisc"]["chest/joint/human origin (real)"].value == 0
    assert medim[f"chest/joint/human {SIDE} (none)"].value == 1
    assert scores["UniDisc"][f"chest/joint/human {SIDE} (significant)"].value == 1
    # readers are drawn: twice the strict one, twice the mild one, or both
    assert (medim["chest/joint/human agreement"].low, medim["chest/joint/human agreement"].high) == (4, 5)


def test_the_crossed_bootstrap_is_resampling_by_hand():
    rng = np.random.default_rng(0)
    table = rng.integers(1, 6, (6, 3)).astype(float)
    strata = [np.array([0, 1, 2]), np.array([4, 5])]
    seen = []

    def statistic(cases, readers):
        found = mean_rating(table, cases, readers)
        for c, r, value in zip(cases, readers, found, strict=True):
            rows, columns = (np.repeat(np.arange(len(w)), w.astype(int)) for w in (c, r))
            assert value == pytest.approx(table[np.ix_(rows, columns)].mean())
            seen.append((c, r))
        return found

    found = crossed_bootstrap(statistic, strata, 6, 3, 0, 50)
    assert found.n == 5 and found.low < found.value < found.high
    cases, readers = (np.array(side[1:]) for side in zip(*seen, strict=True))
    assert (cases[:, :3].sum(axis=1) == 3).all() and (cases[:, 4:].sum(axis=1) == 2).all() and not cases[:, 3].any()
    assert (readers.sum(axis=1) == 3).all() and len(np.unique(readers, axis=0)) > 3
    alone = []
    crossed_bootstrap(lambda c, r: alone.append(r) or c.sum(axis=1), strata, 6, 1, 0, 50)
    assert all((r == 1).all() for r in alone)
    assert crossed_bootstrap(statistic, [], 6, 3, 0, 50).value is None


@pytest.mark.parametrize("skill", [0.0, 1.2])
def test_readers_of_known_skill_are_recovered(tmp_path, skill):
    """d' of every reader and of all lies in its interval in at least 9 of 10 studies."""
    key = make_key(("real", "MeDiM"), ("chest", "slides"), 25)
    single = whole = chance = 0
    studies = 20
    for number in range(studies):
        rng = np.random.default_rng(number)
        answers = [detecting(rng, key, skill, criterion) for criterion in (-0.3, 0.0, 0.4)]
        found = {d.reader: d for d in detection(study(tmp_path / str(number), key, answers), 0, 200)}
        assert list(found) == ["r0", "r1", "r2", ALL]
        single += sum(found[r].d_prime.low <= skill <= found[r].d_prime.high for r in ("r0", "r1", "r2"))
        whole += found[ALL].d_prime.low <= skill <= found[ALL].d_prime.high
        chance += sum(found[r].p < 0.05 for r in ("r0", "r1", "r2"))
        assert found[ALL].p is None and found["r0"].accuracy.n == 100
    assert single >= 0.9 * 3 * studies
    assert whole >= 0.85 * studies
    assert chance >= 0.9 * 3 * studies if skill else chance <= 0.15 * 3 * studies


def test_accuracy_of_one_reader_by_hand(tmp_path):
    key = make_key(("real", "MeDiM"), ("chest",), 5)
    said = dict(zip(key.cases, ["real"] * 4 + ["generated"] * 5 + ["real"], strict=True))
    found = detection(study(tmp_path, key, [lambda c, n: {AGREEMENT.id: "1", ORIGIN.id: said[c]}]), **DRAWS)
    assert found[0].accuracy.value == 0.8 and found[-1].accuracy.value == 0.8
    assert found[0].accuracy.low == pytest.approx(0.4902, abs=1e-4)  # Wilson, 8 of 10
    assert found[0].p == pytest.approx(2 * 56 / 1024)


def test_without_real_cases_there_is_nothing_to_detect(tmp_path):
    key = make_key(("MeDiM", "UniDisc"), ("chest",), 5)
    answers = [lambda c, n: {AGREEMENT.id: "1", ORIGIN.id: "generated"}]
    assert detection(study(tmp_path, key, answers), **DRAWS) == []
    only_real = make_key(("real",), ("chest",), 5)
    assert detection(study(tmp_path / "a", only_real, answers), **DRAWS) == []
    unasked = make_key(("MeDiM", "UniDisc"), ("chest",), 5, questions=(AGREEMENT,))
    assert detection(study(tmp_path / "b", unasked, [lambda c, n: {AGREEMENT.id: "1"}]), **DRAWS) == []


def test_a_known_difference_of_systems_is_recovered(tmp_path):
    """The log odds ratio lies in its interval in 9 of 10 studies; equal systems differ as rarely as promised."""
    key = make_key(("MeDiM", "UniDisc"), ("chest", "slides"), 25)
    inside = alarms = 0
    for number in range(20):
        rng = np.random.default_rng(100 + number)
        effects = {"MeDiM": 1.0 if number % 2 else 0.0, "UniDisc": 0.0}
        ratings = study(tmp_path / str(number), key, [rating(rng, key, effects)] * 3)
        found = {one.dataset: one for one in compare_systems(ratings, 0, 200)}
        assert list(found) == ["chest", "slides", ALL]
        both = found[ALL]
        assert (both.first, both.second, both.test) == ("MeDiM", "UniDisc", UNMATCHED)
        inside += both.odds.low <= effects["MeDiM"] <= both.odds.high
        if effects["MeDiM"]:
            assert both.difference.low > 0 and both.holm < 0.05
        else:
            alarms += both.p < 0.05
        assert both.holm >= both.p
        assert both.odds.n == 300 and both.difference.n == 100
    assert inside >= 18
    assert alarms <= 2


def test_tests_of_means_over_readers(tmp_path):
    for matched in (False, True):
        key = make_key(("MeDiM", "UniDisc"), ("chest",), 20, matched=matched)
        rng = np.random.default_rng(5)
        answers = [rating(rng, key, {"MeDiM": 0.8, "UniDisc": 0.0}) for _ in range(2)]
        ratings = study(tmp_path / str(matched), key, answers)
        (found,) = compare_systems(ratings, **DRAWS)
        means = numbers_of(AGREEMENT, ratings).mean(axis=1)
        left, right = means[:20], means[20:]
        assert found.difference.value == pytest.approx(left.mean() - right.mean())
        test = wilcoxon(left - right) if matched else mannwhitneyu(left, right)
        assert found.test == (MATCHED if matched else UNMATCHED)
        assert found.p == pytest.approx(test.pvalue)
        assert found.holm == found.p


def test_equal_answers_are_no_difference(tmp_path):
    for matched in (False, True):
        key = make_key(("MeDiM", "UniDisc"), ("chest",), 4, matched=matched)
        same = [lambda c, n: {AGREEMENT.id: "3", ORIGIN.id: "real"}]
        (found,) = compare_systems(study(tmp_path / str(matched), key, same), **DRAWS)
        assert found.p == 1 and found.difference.value == 0 and found.odds.value is None


def test_agreement_between_readers_and_with_oneself(tmp_path):
    key = make_key(("MeDiM", "UniDisc"), ("chest",), 30, repeats=20)
    rng = np.random.default_rng(0)
    truth = {case: int(rng.integers(1, 6)) for case in key.cases}

    def answer(noise):
        def of(case, _number):
            said = truth[case] if rng.random() > noise else int(rng.integers(1, 6))
            return {AGREEMENT.id: str(said), ORIGIN.id: "real" if truth[case] > 2 else "generated"}

        return of

    again = list(key.cases)[:20]
    found = agreement(study(tmp_path, key, [answer(0.5)] * 3, again), **DRAWS)
    # two readers agree beyond chance only where neither guesses: (1 - 0.5)^2 = 0.25, on the scale too
    for name in ("cohen_kappa", "fleiss_kappa"):
        one = found[f"agreement/{name}"]
        assert one.low < 0.25 < one.high and one.n == 60
    assert found["agreement/own_kappa"].n == 60  # 20 second showings of 3 readers
    assert found["agreement/own_kappa"].low < 0.25 < found["agreement/own_kappa"].high
    assert found["origin/cohen_kappa"].value == 1 and found["origin/fleiss_kappa"].value == 1
    assert found[f"{SIDE}/cohen_kappa"].value is None


def test_one_reader_has_no_agreement_with_others(tmp_path):
    key = make_key(("MeDiM", "UniDisc"), ("chest",), 5)
    alone = [rating(np.random.default_rng(0), key, {"MeDiM": 0, "UniDisc": 0})]
    found = agreement(study(tmp_path, key, alone), **DRAWS)
    assert all(one.value is None for one in found.values())
