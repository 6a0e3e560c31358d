import json
from pathlib import Path

import pytest
import tiny_language_writers as tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.baselines.published_words import PublishedWords, WordSettings

LLAMA = Path(__file__).parents[3] / "../shared/realdata/tokenizers/llama_tokenizer.model"
TRAINED = tiny.words(max_tokens=200)


@given(st.text(max_size=40))
@settings(max_examples=50)
def test_every_text_survives_the_trained_words(text):
    (ids,) = TRAINED.encode([text])
    assert ids[-1] == TRAINED.end and TRAINED.decode(ids) == text
    assert not {TRAINED.begin, TRAINED.padding, TRAINED.end} & set(ids[:-1])


def test_a_batch_begins_ends_and_is_padded():
    ids, mask = TRAINED.batch(tiny.TEXTS)
    rows = TRAINED.encode(tiny.TEXTS)
    assert ids.shape == (6, 1 + max(map(len, rows))) and mask.sum(1).tolist() == [1 + len(row) for row in rows]
    assert (ids[:, 0] == TRAINED.begin).all() and (ids[~mask] == TRAINED.padding).all()
    assert [TRAINED.decode(row[1:]) for row in ids.tolist()] == tiny.TEXTS
    assert int(ids.max()) < TRAINED.size


def test_texts_are_cut_only_where_the_settings_say_so(capsys):
    with pytest.raises(ValueError, match=r"6 texts have more tokens than words\.max_tokens, 4.*set cut: true"):
        tiny.words(max_tokens=4)
    cut = tiny.words(max_tokens=4, cut=True)
    assert "6 of 6 training texts are cut to 4 tokens" in capsys.readouterr().out
    assert [len(row) for row in cut.encode(tiny.TEXTS)] == [4] * 6
    assert cut.encode(tiny.TEXTS, whole=True) == TRAINED.encode(tiny.TEXTS)
    short = tiny.words(max_tokens=30)
    with pytest.raises(ValueError, match="'aaaa"):
        short.encode(["a" * 90])


def test_berts_words_are_those_of_the_released_blip(tmp_path):
    words = tiny.published_words(tmp_path, "bert", 30522)
    assert (words.begin, words.end, words.padding, words.size) == (30522, 102, 0, 30524)
    ids, _ = words.batch(["Chest x-ray: The heart is normal."])
    assert ids[0, 0] == 30522 and ids[0, -1] == 102
    assert words.decode(ids[0].tolist()[1:]) == "chest x - ray : the heart is normal."


def test_llamas_words_keep_their_own_ends(tmp_path):
    words = tiny.published_words(tmp_path, "llama", 32000)
    assert (words.begin, words.end, words.size) == (1, 2, 32000)
    assert words.decode(words.encode(["heart is normal"])[0]) == "heart is normal"


@pytest.mark.skipif(not LLAMA.is_file(), reason="LLaMA's tokenizer is not here")
def test_llamas_own_file():
    words = PublishedWords.build(WordSettings(str(LLAMA), 0, 60, False), tiny.TEXTS)
    assert (words.begin, words.end, words.size) == (1, 2, 32000)
    assert [words.decode(ids) for ids in words.encode(tiny.TEXTS)] == tiny.TEXTS
    again = PublishedWords.of_config(json.loads(json.dumps(words.config())))
    assert again.encode(tiny.TEXTS) == words.encode(tiny.TEXTS)


@pytest.mark.parametrize("kind", ["trained", "bert", "llama"])
def test_words_come_back_from_their_config(tmp_path, kind):
    words = TRAINED if kind == "trained" else tiny.published_words(tmp_path, kind, 200)
    again = PublishedWords.of_config(json.loads(json.dumps(words.config())))
    same = ("begin", "end", "padding", "size", "max_tokens", "cut")
    assert [getattr(again, name) for name in same] == [getattr(words, name) for name in same]
    assert torch.equal(again.batch(["heart is normal"])[0], words.batch(["heart is normal"])[0])


def test_wrong_settings():
    with pytest.raises(ValueError, match="max_tokens must be at least 2"):
        WordSettings(None, 300, 1, False)
    with pytest.raises(FileNotFoundError):
        PublishedWords.build(WordSettings("/nowhere", 0, 9, False), [])
