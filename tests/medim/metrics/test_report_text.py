import os
import sys
from pathlib import Path

import numpy as np
import pytest

from medim.metrics.bootstrap import Estimate
from medim.metrics.java import MATCHERS, Meteor, java, meteor_score, ptb_tokenize
from medim.metrics.report_text import (
    bleu_of_sums,
    bleu_statistics,
    coco_cider,
    coco_rouge,
    coco_scores,
    copied_from_train,
    distinct_reports,
    length_ratio,
    load_wordnet,
    nltk_bleu,
    nltk_meteor,
    nltk_rouge,
    nltk_scores,
    nltk_tokens,
    paired,
)

# generated | true; what readers of reports meet: equal, reordered, cut, empty, numbers, brackets, repeated, other words
PAIRS = """
Heart size is normal. The lungs are clear. | Heart size is normal. The lungs are clear.
The lungs are clear. Heart size is normal. | Heart size is normal. The lungs are clear.
Small left pleural effusion. | Small right pleural effusion.
Possible small left pleural effusion, no pneumothorax. | There may be a small left pleural effusion.
No acute disease. | The cardiomediastinal silhouette is within normal limits. No focal consolidation.
| Moderate cardiomegaly.
Cardiomegaly. | Moderate cardiomegaly with mild pulmonary edema.
A 1.5 cm nodule in the right upper lobe. | A nodule of 15 mm in the right upper lobe.
The heart the heart the heart the heart. | The heart is enlarged.
Lungs are clear bilaterally | Both lungs are clear.
Bibasilar opacities may reflect atelectasis (versus pneumonia). | Bibasilar atelectasis; pneumonia not excluded.
Endotracheal tube ends 3 cm above the carina. | Endotracheal tube terminates 3 cm above the carina.
No pneumothorax. No effusion. No fracture. | No fracture, effusion, or pneumothorax.
Right-sided port-a-cath in place. | A right sided port is in place.
Mild degenerative changes of the spine. | Degenerative change of the thoracic spine is mild.
Sheets of tumor cells with pleomorphic nuclei. | Tumour cells in sheets with marked nuclear pleomorphism.
Glands are fused and cribriform. | Fused, cribriform glands infiltrate the stroma.
Dense lymphocytic infiltrate. | The stroma holds a dense lymphocytic infiltrate.
Necrosis is absent. | No necrosis is seen.
Mitotic figures are frequent. | Frequent mitoses.
. | Clear lungs.
xyz | Clear lungs.
The findings are unchanged. | Unchanged findings.
The patient's lungs can't be judged. | The lungs of the patient cannot be judged.
Low lung volumes. Crowding of vessels. Heart size is top normal. | Lung volumes are low, with crowding of the vessels.
Interval increase of the right effusion. | The right pleural effusion has increased.
Interval decrease of the left effusion. | The left effusion has decreased.
Hyperinflated lungs, flattened diaphragms. | The lungs are hyperinflated with flattening of the diaphragms.
Sternotomy wires are intact. | Intact sternotomy wires. Heart size is normal.
Heart size is normal. Heart size is normal. Heart size is normal. | Normal heart size.
""".strip().splitlines()
SAID, TRUE = ([line.split("|")[side].strip() for line in PAIRS] for side in (0, 1))
GENERATED, REFERENCE = ({f"p{i:02d}": text for i, text in enumerate(side)} for side in (SAID, TRUE))
DRAWS = {"seed": 3, "resamples": 200}


@pytest.fixture(scope="module")
def meteor():
    with Meteor(timeout=120, matchers=MATCHERS[:3]) as running:
        yield running


@pytest.fixture(scope="module")
def coco(meteor):
    return coco_scores(GENERATED, REFERENCE, meteor, **DRAWS)


@pytest.fixture(scope="module")
def tokens():
    lines = ptb_tokenize([*SAID, *TRUE])
    return lines[: len(SAID)], lines[len(SAID) :]


def theirs(tokens):
    said, true = tokens
    return {i: [text] for i, text in enumerate(true)}, {i: [text] for i, text in enumerate(said)}


def test_values_equal_pycocoevalcap(coco, tokens):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(*theirs(tokens), verbose=0)
    expected = {f"BLEU-{n + 1} (coco)": value for n, value in enumerate(bleu)}
    expected["ROUGE-L (coco)"] = Rouge().compute_score(*theirs(tokens))[0]
    expected["CIDEr (coco)"] = Cider().compute_score(*theirs(tokens))[0]
    for name, value in expected.items():
        assert coco[name].value == pytest.approx(value, abs=1e-12), name
    assert {*expected, "METEOR (coco)"} == set(coco)


def test_meteor_is_the_corpus_value(coco, meteor, tokens):
    each, corpus = meteor.evaluate(meteor.statistics(*tokens))
    assert coco["METEOR (coco)"].value == pytest.approx(corpus, abs=1e-12)
    assert abs(np.mean(each) - corpus) > 0.005


@pytest.mark.slow
def test_meteor_equals_pycocoevalcap(monkeypatch, tokens):
    from pycocoevalcap.meteor.meteor import Meteor as Theirs

    monkeypatch.setenv("PATH", f"{Path(java()).parent}:{os.environ['PATH']}")
    corpus, each = Theirs().compute_score(*theirs(tokens))
    with Meteor() as full:
        scores = coco_scores(GENERATED, REFERENCE, full, **DRAWS)
        statistics = full.statistics(*tokens)
    assert scores["METEOR (coco)"].value == pytest.approx(corpus, abs=1e-12)
    np.testing.assert_allclose(meteor_score(statistics), each, atol=1e-12)


def official(said, true):
    """The official script's numbers for one pair (UCSC-VLAA/MeDiM, report_metric.py), METEOR left out."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge import Rouge

    words = [[w for w in text.lower().replace(".", " .").split(" ") if w] for text in (said, true)]
    bleu = [
        sentence_bleu([words[1]], words[0], weights=[1 / n] * n, smoothing_function=SmoothingFunction().method1)
        for n in (1, 2, 3, 4)
    ]
    return [*bleu, Rouge().get_scores(said.lower(), true.lower())[0]["rouge-l"]["f"]]


def test_nltk_equals_the_official_script_but_for_what_it_drops():
    kept = [(said, true) for said, true in zip(SAID, TRUE, strict=True) if said not in ("", ".")]
    scores = nltk_scores(GENERATED, REFERENCE, **DRAWS)
    total = np.sum([official(*pair) for pair in kept], axis=0)
    assert len(kept) == len(PAIRS) - 2
    bleu_of_stop = nltk_bleu(["."], ["Clear lungs."])[0]  # the script fails on it, in ROUGE
    for n in range(4):
        expected = (total[n] + bleu_of_stop[n]) / len(PAIRS)
        assert scores[f"BLEU-{n + 1} (nltk)"].value == pytest.approx(expected, abs=1e-12)
    assert scores["ROUGE-L (nltk)"].value == pytest.approx(total[4] / len(PAIRS), abs=1e-12)
    assert all(score.n == len(PAIRS) for score in scores.values())


def test_every_interval_holds_its_value_and_n_travels(coco):
    for name, score in coco.items():
        assert score.low < score.value < score.high, name
        assert score.n == len(PAIRS)


def test_bleu_interval_is_that_of_resampled_corpora(coco, tokens):
    from pycocoevalcap.bleu.bleu import Bleu

    rows = bleu_statistics(*tokens)
    index = np.random.default_rng(0).integers(0, len(PAIRS), len(PAIRS))
    said, true = ([side[i] for i in index] for side in tokens)
    expected, _ = Bleu(4).compute_score(*theirs((said, true)), verbose=0)
    np.testing.assert_allclose(bleu_of_sums(rows[index].sum(axis=0)[None])[0], expected, atol=1e-12)


def test_perfect_reports(meteor):
    one = {"a": "The lungs are clear today.", "b": "Moderate left pleural effusion is seen."}
    for name, score in {**coco_scores(one, one, meteor, **DRAWS), **nltk_scores(one, one, **DRAWS)}.items():
        if name == "CIDEr (coco)":
            assert score.value == pytest.approx(10)
        elif name != "METEOR (nltk)":
            assert score.value == pytest.approx(1, abs=1e-6), name


def test_empty_reports_score_zero_on_everything(meteor):
    true = {"a": "Clear lungs.", "b": "Small effusion.", "c": ""}
    silent = dict(zip(true, ("", "  \n", ""), strict=True))
    for name, score in {**coco_scores(silent, true, meteor, **DRAWS), **nltk_scores(silent, true, **DRAWS)}.items():
        assert score.value in (0, None), name
        assert (score.value is None) == (name == "METEOR (nltk)" and load_wordnet() is None)
        assert score.n == 3
    stops = dict.fromkeys(true, " . . ")  # no words for PTB and `rouge`, two words for sentence BLEU
    scores = {
        **coco_scores(stops, true, meteor, **DRAWS),
        "ROUGE-L (nltk)": nltk_scores(stops, true, **DRAWS)["ROUGE-L (nltk)"],
    }
    assert all(score.value == 0 for score in scores.values())
    nothing = dict.fromkeys(true, "")
    assert coco_scores(true, nothing, meteor, **DRAWS)["CIDEr (coco)"].value == 0
    assert coco_scores(nothing, nothing, meteor, **DRAWS)["ROUGE-L (coco)"].value == 0


def test_one_empty_report_lowers_the_mean_by_its_share(coco, meteor):
    worse = coco_scores({**GENERATED, "p00": ""}, REFERENCE, meteor, **DRAWS)
    before = coco_rouge(*(ptb_tokenize(side[:1]) for side in (SAID, TRUE)))[0]
    assert worse["ROUGE-L (coco)"].value == pytest.approx(coco["ROUGE-L (coco)"].value - before / len(PAIRS))


def test_one_pair_has_values_but_no_interval(meteor):
    scores = coco_scores({"a": "Clear lungs."}, {"a": "Clear lungs."}, meteor, **DRAWS)
    assert scores["BLEU-1 (coco)"] == Estimate(pytest.approx(1), None, None, 1)
    assert scores["CIDEr (coco)"].value == 0  # one document: no word is rare
    assert coco_cider(["clear"], ["clear"]) == 0


def test_missing_and_extra_ids_are_an_error():
    with pytest.raises(ValueError, match=r"2 missing \(p00, p01\).*1 extra \(q\).*dvc repro generate"):
        paired({**{k: v for k, v in GENERATED.items() if k not in ("p00", "p01")}, "q": ""}, REFERENCE)
    with pytest.raises(ValueError, match=r"30 missing \(p00, p01, p02, p03, p04, \.\.\.\)"):
        paired({}, REFERENCE)
    with pytest.raises(ValueError, match="no reports"):
        paired({}, {})


def test_the_order_of_the_dict_changes_nothing():
    turned = dict(reversed(GENERATED.items()))
    assert nltk_scores(turned, REFERENCE, **DRAWS) == nltk_scores(GENERATED, REFERENCE, **DRAWS)


def test_line_breaks_are_blanks():
    broken = {key: text.replace(" ", "\r\n\u2028") for key, text in GENERATED.items()}
    assert nltk_scores(broken, REFERENCE, **DRAWS) == nltk_scores(GENERATED, REFERENCE, **DRAWS)


def test_long_reports_do_not_exhaust_the_stack():
    limit = sys.getrecursionlimit()
    words = " ".join(f"w{i}" for i in range(700))
    assert nltk_rouge([words], [words])[0] == pytest.approx(1, abs=1e-6)
    assert sys.getrecursionlimit() == limit


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word):
        return []


def test_nltk_meteor_is_the_formula_of_2007():
    said, true = "the lungs are clear", "the heart and the lungs are clear"
    fmean = 1 / (0.1 / 1 + 0.9 / (4 / 7))  # alpha 0.9: recall counts nine times
    penalty = 0.5 * (1 / 4) ** 3  # one chunk of four words
    got = nltk_meteor([said, ""], [true, true], NoSynonyms())
    np.testing.assert_allclose(got, [fmean * (1 - penalty), 0])


def test_nltk_meteor_without_wordnet_is_not_measured(monkeypatch):
    from medim.metrics import report_text

    monkeypatch.setattr(report_text, "load_wordnet", lambda: None)
    assert nltk_scores(GENERATED, REFERENCE, **DRAWS)["METEOR (nltk)"] == Estimate(None, None, None, len(PAIRS))
    monkeypatch.setattr(report_text, "load_wordnet", NoSynonyms)
    assert nltk_scores(GENERATED, REFERENCE, **DRAWS)["METEOR (nltk)"].value > 0.2


def test_synonyms_of_wordnet_count_as_words():
    wordnet = load_wordnet()
    if wordnet is None:
        pytest.skip("NLTK has no WordNet here: ./setup installs it")
    assert wordnet.get_version() == "3.0"
    got = nltk_meteor(["small wound", "small lesions", "small window"], ["small lesion"] * 3, wordnet)
    half = 0.5 * (1 - 0.5)  # one of two words, in one chunk of one
    np.testing.assert_allclose(got, [1 - 0.5 / 8, 1 - 0.5 / 8, half])


def test_words_of_the_official_script():
    assert nltk_tokens("No  Effusion. 1.5 cm") == ["no", "effusion", ".", "1", ".5", "cm"]


def test_length_ratio():
    assert length_ratio({"a": "one two", "b": ""}, {"a": "one", "b": "one two three"}, **DRAWS).value == 0.5
    assert length_ratio(REFERENCE, REFERENCE, **DRAWS) == Estimate(1, 1, 1, len(PAIRS))


def test_distinct_reports():
    assert distinct_reports(["No effusion.", "no effusion", "Left."], **DRAWS).value == pytest.approx(2 / 3)
    assert distinct_reports(TRUE, **DRAWS).value == pytest.approx(len(set(TRUE)) / len(PAIRS))
    assert distinct_reports(list(set(TRUE)), **DRAWS)[:3] == (1, 1, 1)
    assert distinct_reports(["same"] * 8, **DRAWS).value == pytest.approx(1 / 8)
    assert distinct_reports(["1.5 cm", "15 cm"], **DRAWS).value == 1


def test_copied_from_train():
    train = ["The lungs are clear.", "Left effusion."]
    got = copied_from_train(["the lungs  are clear", "Right effusion.", "", "Left effusion"], train, **DRAWS)
    assert got.value == 0.5
    assert copied_from_train([""], ["", "..."], **DRAWS).value == 0
