"""Words of reports and back."""

import pytest
import torch

from medim.baselines.report_words import (
    ReportWords,
    WordSettings,
    capitalised,
    check_lengths,
    plain_words,
    r2gen_words,
    readable,
    words_of,
)
from medim.data.splits import drawn_pairs
from medim.pairs import full_text, split_prompt

TEXTS = (
    "chest x-ray: The heart is large. No edema.",
    "chest x-ray: Nodule of 1.5 cm (right), 2/3 of the lung is clear.",
    "histology, h&e: No mitoses are seen.",
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A nodule of 1.5 cm.", ["a", "nodule", "of", "1.5", "cm", "."]),
        ("2/3 of T4-5; 1,200 cells", ["2/3", "of", "t4-5", ";", "1,200", "cells"]),
        ("Fracture of C1. No edema", ["fracture", "of", "c1", ".", "no", "edema"]),
        ("effusion.No patient's (x-ray)", ["effusion", ".", "no", "patient's", "(", "x-ray", ")"]),
        ("chest x-ray: ___", ["chest", "x-ray", ":", "___"]),
        ("10% 'left' and/or", ["10", "%", "'", "left", "'", "and/or"]),
        ("", []),
    ],
)
def test_plain_words(text, words):
    assert plain_words(text) == words


@pytest.mark.parametrize(
    ("report", "cleaned"),
    [
        ("A nodule of 1.5 cm.", "a nodule of 15 cm ."),
        ("4.5 mm", "45 mm ."),
        ("2/3 of the lung", "23 of the lung ."),
        ("Fracture of C1. No pneumothorax", "fracture of cno pneumothorax ."),
        ("Grade 1. No effusion", "grade no effusion ."),
        ("effusion.No edema.", "effusionno edema ."),
        ("1. Clear lungs. 2. No edema. 3. Normal heart", "clear lungs . no edema . normal heart ."),
        ('Heart:\nnormal...  T4-5 <b> "x" it\'s', "heart normal . t4-5 b x its ."),
        ("a.  . b", "a . . b ."),
    ],
)
def test_published_cleaning_with_its_defects(report, cleaned):
    assert " ".join(r2gen_words(report)) == cleaned


def test_the_prompt_survives_both_cleanings():
    text = "Chest x-ray, AP: The heart: 1.5 cm. Clear"
    assert words_of(text, "r2gen") == ["chest", "x-ray", "ap", ":", "the", "heart", "15", "cm", ".", "clear", "."]
    for cleaning in ("plain", "r2gen"):
        words = ReportWords.build(TEXTS, 1, cleaning)
        for text in TEXTS:
            prompt, report = split_prompt(words.decode(words.encode(text)))
            found = words_of(text, cleaning)
            assert prompt == readable(found[: found.index(":")])
            assert report.startswith(("The heart is large. No edema", "Nodule of 1", "No mitoses"))


def test_plain_texts_come_back_as_they_were():
    words = ReportWords.build(TEXTS, 1, "plain")
    for text in (TEXTS[0], TEXTS[1], full_text("chest x-ray", "No edema. The lung is clear (right).")):
        assert words.decode(words.encode(text)) == text


def test_capitals_stand_where_sentences_of_the_report_begin():
    assert capitalised("chest x-ray, t4-5: no edema. 1.5 cm. e.g. this? yes! ok") == (
        "chest x-ray, t4-5: No edema. 1.5 cm. E.g. This? Yes! Ok"
    )
    assert capitalised("a. b") == "A. B" and capitalised("") == "" and capitalised("x:") == "x:"
    for pair in drawn_pairs("phantom_cxr", "train", 0, 40, 32):
        text = full_text(pair.prompt, pair.report)
        assert capitalised(text[: len(pair.prompt)] + text[len(pair.prompt) :].lower()) == text


def test_ids_are_those_of_the_published_tokenizer():
    words = ReportWords.build(["b b a c", "b a"], 2, "r2gen")
    assert words.words == (".", "<unk>", "a", "b") and words.num_ids == 5
    assert words.encode("b c a") == [4, 2, 3, 1]
    assert words.decode([4, 2, 3, 1, 0, 4]) == "B <unk> a."


def test_a_rare_colon_is_kept_where_there_are_prompts():
    assert ":" in ReportWords.build(["x: a a a"], 3, "plain").words
    assert ":" not in ReportWords.build(["a a a"], 3, "plain").words


def test_a_batch_is_begun_ended_and_padded_and_nothing_is_cut():
    words = ReportWords.build(["a b c d"], 1, "plain")
    ids, learned = words.batch(["a b c d", "b"], None)
    assert ids.tolist() == [[0, 2, 3, 4, 5, 0], [0, 3, 0, 0, 0, 0]]
    assert learned.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert ids.dtype == torch.int64


def test_a_text_that_is_cut_has_no_end():
    words = ReportWords.build(["a b c d"], 1, "plain")
    ids, learned = words.batch(["a b c d", "a b", "a"], 2)
    assert ids.tolist() == [[0, 2, 3, 0], [0, 2, 3, 0], [0, 2, 0, 0]]
    assert learned.tolist() == [[True, True, False], [True, True, True], [True, True, False]]


def test_long_texts_are_refused_or_reported(capsys):
    words, texts = ReportWords.build(["a b c d", "a"], 1, "plain"), ["a b c d", "a b", "a"]
    with pytest.raises(
        ValueError, match=r"1 of 3 training texts have more than max_length = 3 words \(the longest 4\)"
    ):
        check_lengths(words, texts, WordSettings(1, "plain", 3, "error"), "r2gen")
    assert check_lengths(words, texts, WordSettings(1, "plain", 3, "cut"), "r2gen") == 1
    assert "1 of 3" in capsys.readouterr().out
    assert check_lengths(words, texts, WordSettings(1, "plain", 4, "error"), "r2gen") == 0


def test_the_vocabulary_is_made_again_of_its_config():
    words = ReportWords.build(TEXTS, 1, "plain")
    again = ReportWords.of_config(words.config())
    assert again.words == words.words and again.cleaning == "plain"


def test_marks_stand_as_in_print():
    assert readable(["a", "(", "b", ",", "c", ")", ":", "10", "%", "."]) == "a (b, c): 10%."


def test_impossible_values_are_named():
    with pytest.raises(ValueError, match="cleaning must be one of plain, r2gen, got 'x'"):
        words_of("a", "x")
    for values in ((0, "plain", 3, "cut"), (1, "x", 3, "cut"), (1, "plain", 0, "cut"), (1, "plain", 3, "drop")):
        with pytest.raises(ValueError, match="must be"):
            WordSettings(*values)
    with pytest.raises(ValueError, match="none of 1 words stands 2 times"):
        ReportWords.build(["a"], 2, "plain")
    with pytest.raises(ValueError, match="each word once"):
        ReportWords(["a", "a", "<unk>"], "plain")
    with pytest.raises(ValueError, match="word ids must lie in"):
        ReportWords(["a", "<unk>"], "plain").decode([3])
