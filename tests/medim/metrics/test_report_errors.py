import random
from dataclasses import replace

import numpy as np
import pytest

from medim.data import get_domain
from medim.data.domain import without_side
from medim.evaluation import as_json
from medim.metrics.java import MATCHERS, Meteor
from medim.metrics.report_errors import (
    CE_RULES_OF_ONE,
    CONSTANT_SENTENCE,
    DAMAGES,
    ERRORS,
    RANDOM_REPORT,
    TASK,
    error_row,
    error_scores,
    labels_f1,
    pair_metrics,
    report_error_rows,
    reworded,
    worded,
    wrong_reports,
)
from medim.metrics.report_errors import _joined as joined
from medim.metrics.report_errors import _scene as scene_of
from medim.metrics.report_errors import _told as told
from medim.metrics.sides import exchange_sides
from medim.table_cells import build_table
from medim.table_render import render_all
from medim.tables import get_table, phantom_world

CHEST, SLIDES = get_domain("phantom_cxr"), get_domain("phantom_pathology")


def make_pairs(domain, patients):
    return [pair for patient in range(patients) for pair in domain.pairs(5, patient, 32)]


@pytest.fixture(scope="module")
def chest():
    return make_pairs(CHEST, 40)


@pytest.fixture(scope="module")
def slides():
    return make_pairs(SLIDES, 40)


@pytest.fixture(scope="module")
def damaged(chest, slides):
    """Domain -> pairs, right reports, wrong reports."""
    found = {}
    for domain, pairs in ((CHEST, chest), (SLIDES, slides)):
        right = reworded([scene_of(pair) for pair in pairs], domain, 1)
        found[domain.name] = (domain, pairs, right, wrong_reports(pairs, right, domain, 1))
    return found


@pytest.fixture(scope="module")
def meteor():
    with Meteor(timeout=120, matchers=MATCHERS[:2]) as running:
        yield running


def states(domain, report):
    return domain.grammar.read(report)


def cases(damaged, error):
    """(domain, truth, right, wrong) of every pair that can have the error."""
    for domain, pairs, right, wrong in damaged.values():
        for pair, good, bad in zip(pairs, right, wrong.get(error, [None] * len(pairs)), strict=True):
            if bad is not None:
                yield domain, pair.states, good, bad


def test_right_reports_say_the_truth_in_other_words(damaged):
    for domain, pairs, right, _ in damaged.values():
        assert all(states(domain, report) == pair.states for pair, report in zip(pairs, right, strict=True))
        assert np.mean([report == pair.report for pair, report in zip(pairs, right, strict=True)]) < 0.05


def test_taken_apart_and_joined_a_report_is_as_before(damaged):
    for domain, _, right, _ in damaged.values():
        for report in right:
            one = told(report, domain.grammar, {})
            assert joined(one.start, one.sentences) == report
        if domain is SLIDES:
            assert all(told(report, domain.grammar, {}).start for report in right)


def test_a_swapped_side_is_one_label_on_the_other_side(damaged):
    seen = 0
    for domain, truth, good, bad in cases(damaged, "side swapped"):
        said, meant = states(domain, bad), states(domain, good)
        (gone,), (new,) = set(meant) - set(said), set(said) - set(meant)
        assert gone != new and without_side(gone) == without_side(new) and said[new] == meant[gone]
        assert len(bad.split()) == len(good.split())
        assert new not in truth
        seen += 1
    assert seen > 20
    assert "side swapped" not in damaged["phantom_pathology"][3]
    assert set(damaged["phantom_pathology"][3]) == set(damaged["phantom_cxr"][3]) - {"side swapped"}


def test_a_flipped_negation_and_a_removed_finding_lose_one_sentence_of_findings(damaged):
    for error in ("negation flipped", "finding removed"):
        seen = 0
        for domain, _, good, bad in cases(damaged, error):
            said, meant = states(domain, bad), states(domain, good)
            lost = set(meant) - set(said)
            assert lost and not set(said) - set(meant) and len({without_side(label) for label in lost}) == 1
            more = len(told(bad, domain.grammar, {}).sentences) - len(told(good, domain.grammar, {}).sentences)
            assert more == (0 if error == "negation flipped" else -1)
            seen += 1
        assert seen > 60


def test_a_finding_is_added_that_is_on_no_side(damaged):
    for domain, truth, good, bad in cases(damaged, "finding added"):
        said, meant = states(domain, bad), states(domain, good)
        (new,) = set(said) - set(meant)
        assert said[new] == "present" and without_side(new) not in map(without_side, truth)
        assert {label: state for label, state in said.items() if label != new} == meant


def test_every_wrong_sentence_is_the_grammars(damaged):
    for error in DAMAGES:
        for domain, _, good, bad in cases(damaged, error):
            start = told(bad, domain.grammar, {}).start
            assert start == told(good, domain.grammar, {}).start or not bad
            for number, sentence in enumerate(told(bad, domain.grammar, {}).sentences):
                assert domain.grammar.is_valid(sentence), (error, number, sentence)


def test_copied_and_constant_reports(damaged):
    for _, pairs, _, wrong in damaged.values():
        owners = {}
        for pair in pairs:
            owners.setdefault(pair.report, set()).add(pair.patient_id)
        for pair, report in zip(pairs, wrong[RANDOM_REPORT], strict=True):
            assert owners[report] - {pair.patient_id}
        assert len(set(wrong[CONSTANT_SENTENCE])) == 1


def test_worded_sentences_state_what_they_should():
    draw = random.Random(0)
    for phrases in CHEST.grammar.language.phrases:
        for state in ("present", "uncertain", "absent"):
            for _ in range(5):
                side = "left" if phrases.finding.sided and state != "absent" else ""
                read = states(CHEST, worded(CHEST.grammar, phrases.finding.name, state, side, draw))
                label = f"{side} {phrases.finding.name}".strip()
                assert read == ({} if state == "absent" else {label: state})


def test_a_row_by_hand():
    right, wrong = np.array([1.0, 0.8, 0.6]), np.array([0.5, 0.8, 0.5])
    row = error_row("e", "m", right, wrong, 0, 100)
    assert row.right.value == pytest.approx(0.8) and row.wrong.value == pytest.approx(0.6)
    assert row.drops.value == pytest.approx(2 / 3) and row.drops.n == 3
    spread = np.sqrt((right.var() + wrong.var()) / 2)
    assert row.effect.value == pytest.approx(0.2 / spread)
    assert error_row("e", "m", np.ones(4), np.zeros(4), 0, 100).effect.value is None
    assert error_row("e", "m", np.zeros(0), np.zeros(0), 0, 100).right == (None, None, None, 0)


def test_scores_of_one_report_are_those_of_the_tables(meteor, chest):
    from medim.metrics.report_text import coco_scores, nltk_scores

    said, pair = exchange_sides(chest[0].report), chest[0]
    found = pair_metrics([pair.report], [pair.states], {"swapped": [said]}, CHEST.grammar, meteor)["swapped"]
    table = coco_scores({"a": said}, {"a": pair.report}, meteor, 0, 10) | nltk_scores(
        {"a": said}, {"a": pair.report}, 0, 10
    )
    for name, one in table.items():
        if one.value is not None:
            assert found[name][0] == pytest.approx(one.value, abs=1e-12), name
    assert {name for name in found if name not in table} == {"finding_f1", "finding_f1_without_side"}


def test_who_notices_what(meteor, chest):
    rows = {(row.error, row.metric): row for row in report_error_rows(chest, CHEST, meteor, 2, 100)}
    errors = [*DAMAGES, RANDOM_REPORT, CONSTANT_SENTENCE]
    assert list(dict.fromkeys(error for error, _ in rows)) == errors
    for error in ("side swapped", "negation flipped", "finding removed", "finding added"):
        facts = rows[error, "finding_f1"]
        assert facts.right.value == 1 and facts.drops.value == 1 and facts.wrong.value < 0.9
        assert facts.effect.value > 2 * rows[error, "BLEU-4 (coco)"].effect.value
    swapped = rows["side swapped", "finding_f1_without_side"]
    assert swapped.wrong.value == 1 and swapped.drops.value == 0  # without sides nothing is wrong
    assert swapped.effect.value is None
    for metric in ("BLEU-1 (coco)", "ROUGE-L (coco)", "METEOR (coco)", "CIDEr (coco)", "ROUGE-L (nltk)"):
        side = rows["side swapped", metric]
        assert 0 <= side.right.value - side.wrong.value < 0.4 * side.right.value
        assert side.effect.value < rows[CONSTANT_SENTENCE, metric].effect.value
    assert rows["side swapped", "finding_f1"].drops.n < rows[RANDOM_REPORT, "finding_f1"].drops.n == len(chest)


def test_labels_of_one_report():
    """Both have effusion and edema of (effusion, edema) and (effusion, pneumonia): F1 1/2; two normal ones agree."""
    reference = ["There is a left pleural effusion and pulmonary edema.", "No pneumothorax.", "Pulmonary edema."]
    said = ["There is a left pleural effusion and pneumonia.", "The heart is normal.", "No pulmonary edema."]
    assert labels_f1(reference, reference).tolist() == [1, 1, 1]
    assert labels_f1(reference, said).tolist() == [0.5, 1, 0]


def test_rules_notice_a_negation_and_no_side(meteor, chest):
    rows = {(r.error, r.metric): r for r in report_error_rows(chest, CHEST, meteor, 2, 100, ce_rules=True)}
    swapped, flipped = (rows[error, CE_RULES_OF_ONE] for error in ("side swapped", "negation flipped"))
    assert swapped.drops.value == 0 and flipped.drops.value > 0.5


def test_the_table_holds_what_was_measured(meteor, slides):
    """Every cell is an `ErrorRow`'s share of drops or effect; errors that a dataset cannot have are not measured."""
    rows = report_error_rows(slides, SLIDES, meteor, 2, 20)
    scores = error_scores({SLIDES.name: rows})
    assert tuple(scores) == ERRORS and scores["side swapped"] == {}
    page = {"model": TASK, "rows": {error: as_json(found) for error, found in scores.items()}}
    built = build_table(get_table("report_errors"), {TASK: page}, phantom_world("phantom"))
    cells = {(cell["row"], cell["column"]): cell for cell in built["cells"]}
    measured = {place: cell["value"] for place, cell in cells.items() if cell["value"] is not None}
    known = {}
    for row in rows:
        known[row.error, f"{SLIDES.name}/{row.metric}: noticed"] = row.drops.value
        known[row.error, f"{SLIDES.name}/{row.metric}: effect"] = row.effect.value
    assert {place: value for place, value in known.items() if value is not None} == measured
    assert measured["finding removed", "phantom_pathology/finding_f1: noticed"] == 1
    assert cells["finding removed", "phantom_pathology/finding_f1: noticed"]["n"] == next(
        row.drops.n for row in rows if row.error == "finding removed"
    )
    text = render_all(built)[".md"]
    assert "| finding\\_f1: noticed | not measured |" in text and "finding\\_f1: effect" in text
    assert "side swapped" in text and "Cohen's d" in text


def test_errors_are_a_function_of_the_seed(chest):
    scenes = [scene_of(pair) for pair in chest[:8]]
    texts = []
    for seed in (1, 1, 2):
        right = reworded(scenes, CHEST, seed)
        texts.append((right, wrong_reports(chest[:8], right, CHEST, seed)))
    assert texts[0] == texts[1] != texts[2]


def test_pairs_that_cannot_be_used(meteor, chest):
    with pytest.raises(ValueError, match="was not drawn"):
        report_error_rows([replace(chest[0], scene=None)], CHEST, meteor, 0, 10)
    with pytest.raises(ValueError, match="two patients at least"):
        report_error_rows(chest[:1], CHEST, meteor, 0, 10)
    with pytest.raises(ValueError, match="without a ReportGrammar"):
        report_error_rows(chest, get_domain("marks"), meteor, 0, 10)
    with pytest.raises(ValueError, match="none of the keys"):
        reworded([{"patient": 1}], CHEST, 0)
