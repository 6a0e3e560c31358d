"""The grammar's engine: what it writes it reads back and accepts, and broken prose is still read."""

import random
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.data.cxr_words import EFFUSION, HOME, PLACES, SIZES
from medim.data.cxr_words_ood import AWAY
from medim.data.report_grammar import Language, Phrases, ReportGrammar, split_sentences

GRAMMARS = {"home": ReportGrammar(HOME, readers=(AWAY,)), "away": ReportGrammar(AWAY, readers=(HOME,))}
LABELS = GRAMMARS["home"].labels
FACTS = st.fixed_dictionaries(
    {
        label: st.fixed_dictionaries({"size": st.sampled_from(sorted(SIZES)), "place": st.sampled_from(sorted(PLACES))})
        for label in LABELS
    }
)
FINDINGS = st.dictionaries(st.sampled_from(LABELS), st.sampled_from(["absent", "uncertain", "present"]))


@pytest.mark.parametrize("name", GRAMMARS)
def test_every_sentence_reads_back_and_is_valid(name):
    grammar = GRAMMARS[name]
    for sentence, truth in grammar.every_sentence():
        assert grammar.read(sentence) == truth, sentence
        assert grammar.is_valid(sentence), sentence


@pytest.mark.parametrize("name", GRAMMARS)
def test_all_findings_states_and_sides_are_enumerated(name):
    said = {(label, state) for _, truth in GRAMMARS[name].every_sentence() for label, state in truth.items()}
    assert said == {(label, state) for label in LABELS for state in ("uncertain", "present")}


def test_each_site_reads_the_other_and_produces_none_of_its_sentences():
    for mine, other in (("home", "away"), ("away", "home")):
        for sentence, truth in GRAMMARS[other].every_sentence():
            assert GRAMMARS[mine].read(sentence) == truth, sentence
            if truth:
                assert not GRAMMARS[mine].is_valid(sentence), sentence


@settings(max_examples=150, deadline=None)
@given(FINDINGS, FACTS, st.integers(0, 2**31), st.booleans(), st.sampled_from(sorted(GRAMMARS)))
def test_any_combination_reads_back(findings, facts, seed, prior, name):
    grammar = GRAMMARS[name]
    report = grammar.write(findings, random.Random(seed), facts, prior)
    truth = {label: state for label, state in findings.items() if state != "absent"}
    assert grammar.read(report) == truth
    assert list(grammar.read(report)) == [label for label in LABELS if label in truth]
    assert all(grammar.is_valid(sentence) for sentence in split_sentences(report)), report
    assert report == grammar.write(findings, random.Random(seed), facts, prior)
    assert ":" not in report and "\n" not in report and "  " not in report


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=string.ascii_letters + " .,;:!?", max_size=80))
def test_any_text_is_read_without_error(text):
    assert set(GRAMMARS["home"].read(text).values()) <= {"uncertain", "present"}
    assert GRAMMARS["home"].is_valid(text) in (True, False)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("left pleural effusion is", {"left effusion": "present"}),
        ("Possible right the pleural effusion effusion", {"right effusion": "uncertain"}),
        ("No pneumothorax, effusion or nodule but the heart is enlarged.", {"cardiomegaly": "present"}),
        ("Left effusion without pneumothorax.", {"left effusion": "present"}),
        ("A left effusion cannot be excluded and there is no edema.", {"left effusion": "uncertain"}),
        (
            "Left effusion and possible right pneumothorax.",
            {"left effusion": "present", "right pneumothorax": "uncertain"},
        ),
        ("Cardiomegaly, right lower zone nodule.", {"cardiomegaly": "present", "right nodule": "present"}),
        ("Left and right effusions.", {"left effusion": "present", "right effusion": "present"}),
        ("On the left, there is an effusion.", {"left effusion": "present"}),
        ("Possible edema. Pulmonary edema.", {"edema": "present"}),
        ("It is possible that there is edema.", {"edema": "uncertain"}),
        ("No change in the small left effusion.", {"left effusion": "present"}),
        ("Effusion.", {"left effusion": "present", "right effusion": "present"}),  # no side: half right with sides
        ("The heart is not enlarged.", {}),
        ("No left effusion.", {}),
        ("", {}),
    ],
)
def test_reads_broken_and_foreign_prose(report, expected):
    assert GRAMMARS["home"].read(report) == expected


@pytest.mark.parametrize(
    "sentence",
    [
        "there is cardiomegaly.",  # no capital
        "There is cardiomegaly",  # no end
        "There is cardiomegaly .",
        "There is a cardiomegaly.",
        "There is a small middle pleural effusion.",
        "A enlarged heart.",
        "No pleural effusion or.",
        "",
    ],
)
def test_what_the_grammar_cannot_produce_is_invalid(sentence):
    assert not GRAMMARS["home"].is_valid(sentence)


def test_comparisons_need_a_prior_study_and_are_valid():
    grammar = GRAMMARS["home"]
    starts = tuple(start.strip().capitalize() for start in HOME.comparisons)
    with_prior = [grammar.write({}, random.Random(i), {}, True) for i in range(50)]
    assert any(report.startswith(starts) for report in with_prior)
    assert not any(grammar.write({}, random.Random(i), {}, False).startswith(starts) for i in range(50))


def test_the_same_findings_get_different_reports_with_only_some_negations():
    reports = [GRAMMARS["home"].write({"edema": "present"}, random.Random(i)) for i in range(200)]
    assert len(set(reports)) >= 195
    assert {"pneumothorax" in report for report in reports} == {True, False}


def test_both_sides_are_sometimes_said_at_once():
    both = {"left effusion": "present", "right effusion": "present"}
    facts = {label: {"size": "small"} for label in both}
    reports = [GRAMMARS["home"].write(both, random.Random(i), facts) for i in range(60)]
    assert {"ilateral" in report or "both sides" in report for report in reports} == {True, False}
    unlike = {"left effusion": {"size": "small"}, "right effusion": {"size": "large"}}
    for i in range(60):  # sizes that differ are never claimed of both
        report = GRAMMARS["home"].write(both, random.Random(i), unlike)
        assert not any(f"{word} bilateral" in report.lower() for word in ("small", "minor", "large", "sizeable"))


def test_sentences_split_at_their_ends():
    assert split_sentences("No nodule. Size 2.3 cm!  Done") == ["No nodule.", "Size 2.3 cm!", "Done"]
    assert split_sentences(" ") == []


def test_refuses_what_it_cannot_say():
    grammar = GRAMMARS["home"]
    with pytest.raises(ValueError, match="no finding 'left ear'"):
        grammar.write({"left ear": "present"}, random.Random(0))
    with pytest.raises(ValueError, match="state 'maybe'"):
        grammar.write({"edema": "maybe"}, random.Random(0))
    with pytest.raises(ValueError, match="needs one of"):
        grammar.write({"left effusion": "present"}, random.Random(0), {"left effusion": {"size": "vast"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"present": ("{side} effusion.",)}, "1 phrasings"),
        ({"present": ("effusion.", "an effusion.", "some effusion.", "big effusion.")}, "should name"),
        ({"absent": ("no {side} effusion.", "no effusion.", "none.", "no fluid.")}, "should not name"),
        ({"both": ("{amount} bilateral effusions.",)}, "unknown slot 'amount'"),
        ({"both": ("bilateral: effusions.",)}, "holds ':'"),
        ({"both": ("bilateral effusions",)}, "does not end"),
    ],
)
def test_a_broken_language_is_refused(change, message):
    good = next(phrases for phrases in HOME.phrases if phrases.finding == EFFUSION)
    bad: Phrases = replace(good, **change)
    with pytest.raises(ValueError, match=message):
        ReportGrammar(Language(phrases=(bad,), statements=(), slots=HOME.slots))
