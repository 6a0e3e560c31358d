"""The report tokenizer: round trips, special ids, and the tokenizers that published models bring."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.tokenizers.sentences import whole_sentences
from medim.tokenizers.text import TextTokenizer

LLAMA = Path(__file__).parents[3] / "../shared/realdata/tokenizers/llama_tokenizer.model"
REPORTS = [
    f"chest x-ray: There is a {size} {side} pleural effusion. No {other}. The heart is {heart}."
    for size in ("small", "moderate", "large")
    for side in ("left", "right")
    for other in ("pneumothorax", "consolidation")
    for heart in ("normal", "enlarged")
]
TOKENIZER = TextTokenizer.train(REPORTS, 400)


@given(st.text(max_size=60), st.integers(0, 20))
def test_every_text_that_fits_survives(text, spare):
    length = TOKENIZER.num_tokens(text) + 1 + spare
    ids = TOKENIZER.encode(text, length)
    assert len(ids) == length
    assert ids.count(TOKENIZER.eos_id) == 1 + spare and ids[-1] == TOKENIZER.eos_id
    assert TOKENIZER.decode(ids) == text
    assert all(TOKENIZER.allowed()[ids])


@given(st.text(min_size=1, max_size=60))
def test_a_longer_text_is_cut_to_its_first_tokens(text):
    number = TOKENIZER.num_tokens(text)
    ids = TOKENIZER.encode(text, number)
    assert ids == [*TOKENIZER.encode(text, number + 1)[: number - 1], TOKENIZER.eos_id]


@settings(max_examples=200)
@given(st.lists(st.integers(0, TOKENIZER.size - 1), max_size=40))
def test_any_ids_decode(ids):
    text = TOKENIZER.decode(ids)
    before_end = ids[: ids.index(TOKENIZER.eos_id)] if TOKENIZER.eos_id in ids else ids
    assert text == TOKENIZER.decode([i for i in before_end if i not in (TOKENIZER.boi_id, TOKENIZER.eoi_id)])
    assert TOKENIZER.decode(torch.tensor(ids, dtype=torch.int64)) == text


def test_spelled_out_specials_stay_text():
    for text in ("<eos>", "a <boi> b", "<eoi>", "</s>", "<|endoftext|>"):
        ids = TOKENIZER.encode(text, 30)
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.boi_id not in ids and TOKENIZER.eoi_id not in ids


def test_training_gives_the_asked_size_and_the_same_bytes_twice():
    again = TextTokenizer.train(list(REPORTS), 300)
    assert (again.size, again.boi_id, again.eoi_id, again.eos_id) == (300, 297, 298, 299)
    assert again.backend.content() == TextTokenizer.train(iter(REPORTS), 300).backend.content()
    assert again.num_tokens(REPORTS[0]) < len(REPORTS[0]) / 2


def test_allowed_is_everything_but_begin_and_end_of_image():
    allowed = TOKENIZER.allowed()
    assert allowed.shape == (TOKENIZER.size,) and allowed.dtype == torch.bool
    assert (~allowed).nonzero().flatten().tolist() == [TOKENIZER.boi_id, TOKENIZER.eoi_id]


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert (loaded.size, loaded.eos_id, loaded.boi_id) == (TOKENIZER.size, TOKENIZER.eos_id, TOKENIZER.boi_id)
    assert loaded.encode(REPORTS[3], 64) == TOKENIZER.encode(REPORTS[3], 64)
    assert TextTokenizer.from_file(tmp_path).encode(REPORTS[3], 64) == TOKENIZER.encode(REPORTS[3], 64)
    (tmp_path / "text_tokenizer.json").write_text(
        (tmp_path / "text_tokenizer.json").read_text().replace(f'"size": {TOKENIZER.size}', '"size": 7')
    )
    with pytest.raises(ValueError, match="dvc repro tokenize_pairs"):
        TextTokenizer.load(tmp_path)


def hugging_face_folder(folder, end="<stop>", as_object=False):
    """A tokenizer with controls of its own, a hole in its ids, and a template that adds a begin."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"no": 0, "effusion": 1, "<unk>": 2, "heart": 5}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("<begin>"), AddedToken(end), AddedToken("<unk>")])
    begin = tokenizer.token_to_id("<begin>")
    tokenizer.post_processor = processors.TemplateProcessing("<begin> $A", special_tokens=[("<begin>", begin)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": {"content": end} if as_object else end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


@pytest.mark.parametrize("as_object", [True, False])
def test_hugging_face_folder(tmp_path, as_object):
    theirs = hugging_face_folder(tmp_path, as_object=as_object)
    ours = TextTokenizer.from_file(tmp_path)
    ids = theirs.get_vocab()
    assert ours.eos_id == ids["<stop>"]
    assert (ours.boi_id, ours.size) == (max(ids.values()) + 1, max(ids.values()) + 3)
    assert ours.encode("no effusion", 4) == [0, 1, ours.eos_id, ours.eos_id]  # no begin: the sequence has its own
    assert ours.decode([ids["<begin>"], 0, 1, ours.eos_id, 5]) == "no effusion"
    holes = set(range(ours.size - 2)) - set(ids.values())
    banned = holes | {ids["<begin>"], ids["<unk>"], ours.boi_id, ours.eoi_id}
    assert set((~ours.allowed()).nonzero().flatten().tolist()) == banned
    ours.save(tmp_path / "saved")
    assert TextTokenizer.load(tmp_path / "saved").eos_id == ours.eos_id


def test_end_that_the_folder_names_but_has_not(tmp_path):
    hugging_face_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<gone>"}')
    with pytest.raises(ValueError, match="'<gone>' is not among"):
        TextTokenizer.from_file(tmp_path)


def test_end_of_a_bare_file_is_found_by_its_name_or_added(tmp_path):
    hugging_face_folder(tmp_path, end="</s>")
    named = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    assert named.eos_id < named.boi_id
    hugging_face_folder(tmp_path)
    added = TextTokenizer.from_file(tmp_path / "tokenizer.json")
    assert added.eos_id == added.eoi_id + 1 == added.size - 1


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        TextTokenizer.from_file(tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        TextTokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match="tokenize_pairs"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(ValueError, match=r"\.json"):
        TextTokenizer.from_file(tmp_path / "vocab.txt")


def test_wrong_arguments():
    with pytest.raises(ValueError, match="at least 259"):
        TextTokenizer.train(REPORTS, 258)
    with pytest.raises(ValueError, match="at least 1"):
        TOKENIZER.encode("a", 0)
    with pytest.raises(ValueError, match=r"\[0, \d+\), got 400"):
        TOKENIZER.decode([400])


@pytest.mark.skipif(not LLAMA.is_file(), reason="LLaMA's tokenizer is not here")
def test_llama(tmp_path):
    ours = TextTokenizer.from_file(LLAMA)
    assert (ours.boi_id, ours.eoi_id, ours.eos_id, ours.size) == (32000, 32001, 2, 32002)
    text = "The heart size is normal; no pleural effusion (±2 cm)."
    ids = ours.encode(text, 40)
    assert len(ids) == 40 and ids[-1] == 2 and ours.decode(ids) == text
    assert (~ours.allowed()).nonzero().flatten().tolist() == [0, 1, 32000, 32001]
    ours.save(tmp_path)
    assert TextTokenizer.load(tmp_path).encode(text, 40) == ids
    said = [
        "Chest:",
        "The heart is normal.",
        "A mass of 1.5 cm.",
        "No  effusion.",
    ]  # a space alone is a token before digits
    ids = ours.encode(" ".join(said), 60)
    found = whole_sentences(ids, ours.last_characters())
    assert [ours.decode(ids[span]).strip() for span in found] == said
    assert ours.encode("a </s> b", 40)[:3] != [2] * 3 and ours.decode(ours.encode("a </s> b", 40)) == "a </s> b"


@given(st.lists(st.text("abc 1\n", min_size=1, max_size=6), min_size=1, max_size=5))
def test_last_characters_let_sentences_be_found(words):
    """Also where a space is a token of its own; nothing ends behind a digit, and EOS writes nothing."""
    said = [word.strip() + "." for word in words if word.strip() and not word.strip()[-1].isdigit()]
    ids = TOKENIZER.encode(" ".join(said), 200)
    found = whole_sentences(ids, TOKENIZER.last_characters())
    assert [TOKENIZER.decode(ids[span]).strip() for span in found] == said
