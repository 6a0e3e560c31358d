import pytest
import tiny_language_writers as tiny

from medim.baselines.prompted_writer import existing, llama_config, split_template


def test_a_template_is_split_at_its_marks():
    assert split_template("a <x> b <y>", ["<x>", "<y>"]) == ["a ", " b ", ""]
    assert split_template("<x>", ["<x>"]) == ["", ""]
    for wrong in ("a b", "<x> <x> <y>", "<y> <x>"):
        with pytest.raises(ValueError, match="once each, in this order"):
            split_template(wrong, ["<x>", "<y>"])


def test_no_word_is_barred_from_learning():
    words = tiny.words()
    config = llama_config(tiny.LANGUAGE, words)
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (words.size, words.begin, words.end)
    assert config.pad_token_id is None


def test_a_start_that_is_not_there(tmp_path):
    assert existing(None) is None and existing(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match="`start`"):
        existing(str(tmp_path / "gone"))
