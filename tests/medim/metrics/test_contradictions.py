"""Reports against themselves: known sentences, and reports of the grammar, which never contradict themselves."""

import random

import pytest

from medim.data import get_domain
from medim.data.domain import labels_of
from medim.data.report_grammar import capitalise, with_articles
from medim.metrics.contradictions import Denials, repeated_sentences, self_agreement

CXR, TILES = (get_domain(name) for name in ("phantom_cxr", "phantom_pathology"))


def both(*names):
    return {f"{side} {name}" for side in ("left", "right") for name in names}


@pytest.mark.parametrize("name", ["phantom_cxr", "phantom_pathology", "phantom_cxr_ood"])
def test_no_report_of_the_grammar_repeats_or_contradicts_itself(name):
    domain = get_domain(name)
    scenes = [scene for patient in range(300) for scene in domain.studies(0, patient)]
    reports = [domain.report(scene) for scene in scenes]
    denials = Denials(domain.grammar)
    assert denials.contradicted(reports, 0, 20)[:3] == (0, 0, 0)
    assert repeated_sentences(reports, 0, 20)[:3] == (0, 0, 0)
    for scene, report in zip(scenes, reports, strict=True):  # what is denied is not there, what is there stays
        truth = {label for label, state in domain.truth(scene).items() if state != "absent"}
        assert not denials.of(report) & truth
        assert denials.uncontradicted(report) == domain.grammar.read(report)


@pytest.mark.parametrize(
    ("report", "denied"),
    [
        ("No pacemaker.", {"pacemaker"}),
        ("No pacemaker is seen.", {"pacemaker"}),
        ("Compared with the prior study, no pacemaker.", {"pacemaker"}),
        ("No pleural effusion or pneumothorax.", both("effusion", "pneumothorax")),
        ("No consolidation or nodule. No cardiomegaly.", both("consolidation", "nodule") | {"cardiomegaly"}),
        ("There is a pacemaker.", set()),
        ("No pacemaker where the grammar has none.", set()),  # not a sentence of the grammar
        ("The mediastinum is normal.", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_what_a_sentence_denies(report, denied):
    assert Denials(CXR.grammar).of(report) == denied


def test_every_denial_of_a_finding_is_known():
    """A sentence of the grammar that mentions one finding and states none denies that finding."""
    for domain in (CXR, TILES):
        denials, found = Denials(domain.grammar), set()
        for sentence, states in domain.grammar.every_sentence():
            assert not states or not denials.of(sentence), sentence
            found |= denials.of(sentence)
        assert found == set(labels_of(domain.findings))


@pytest.mark.parametrize("domain", [CXR, TILES], ids=["chest", "tiles"])
def test_every_way_to_say_that_a_finding_is_absent_denies_it(domain):
    denials = Denials(domain.grammar)
    for phrases in domain.grammar.language.phrases:
        for template in phrases.absent:
            for text in domain.grammar.expand(template, phrases.slots):
                assert denials.of(capitalise(with_articles(text))) >= set(phrases.finding.labels), text


def test_shares_by_hand():
    reports = [
        "A pacemaker is in place. No pacemaker. No edema. No edema.",
        "Moderate cardiomegaly. No pacemaker.",
        "",
    ]
    read = [CXR.grammar.read(report) for report in reports]
    assert [set(one) for one in read] == [{"pacemaker"}, {"cardiomegaly"}, set()]
    found = self_agreement(reports, read, labels_of(CXR.findings), CXR.grammar, 0, 50)
    assert found["repeated_sentences"].value == pytest.approx(1 / 7)  # the empty one counts as one sentence
    assert found["contradicted_findings"].value == pytest.approx(1 / 2)
    assert found["uncontradicted_finding_f1"].value == pytest.approx(1 / 2)  # pacemaker 0, cardiomegaly 1
    assert {one.n for one in found.values()} == {3}


def test_the_order_of_sentences_does_not_matter():
    sentences = ["A pacemaker is in place.", "No pacemaker is seen.", "No cardiomegaly.", "No pulmonary edema."]
    denials, rng = Denials(CXR.grammar), random.Random(0)
    for _ in range(5):
        rng.shuffle(sentences)
        assert denials.contradicted([" ".join(sentences)], 0, 2).value == 1
        assert denials.uncontradicted(" ".join(sentences)) == {}


def test_where_nothing_is_stated_nothing_is_measured():
    assert Denials(CXR.grammar).contradicted(["No pacemaker."], 0, 5).value is None
    assert Denials(CXR.grammar).contradicted([], 0, 5) == (None, None, None, 0)
