"""Copies of reports with a sentence too many: what they hold, how often, and that nothing else changes."""

import pytest
import torch

from medim.spliced_reports import spliced
from medim.tokenizers.sentences import whole_sentences

# ids: 0 EOS, 1-60 words, 61 full stop, 62 colon
CHARACTERS = ("", *("w" * 60), ".", ":")
LENGTH = 24


def report(*words):
    """A prompt of one word, then a sentence a word."""
    ids = [60, 62] + [id_ for word in words for id_ in (word, 61)]
    return ids + [0] * (LENGTH - len(ids))


def sentences(ids):
    return [ids[span][0] for span in whole_sentences(ids, CHARACTERS)]


def copies(reports, seed):
    return spliced(torch.tensor(reports), CHARACTERS, 0, torch.Generator().manual_seed(seed)).tolist()


def test_one_sentence_comes_and_at_most_one_goes():
    """Words are told apart by their report, so each tells where it came from."""
    reports = [report(1, 2, 3), report(11, 12, 13), report(21, 22, 23)]
    kept, twice, places, total = 0, 0, [], 0
    for seed in range(600):
        for number, (own, wrong) in enumerate(zip(reports, copies(reports, seed), strict=True)):
            before, after = sentences(own), sentences(wrong)
            mine = [word for word in after if word in before]
            other = [word for word in after if word not in before]
            assert wrong[:2] == [60, 62] and len(other) <= 1 and all(word // 10 != number for word in other)
            assert sorted(set(mine), key=before.index) == [w for w in before if w in mine], "in their order"
            assert len(after) in (4, 5)
            twice += not other
            kept += len(after) == 5
            total += 1
            if other:
                places.append(after.index(other[0]))
    assert twice / total == pytest.approx(0.15, abs=0.03)
    assert kept / total == pytest.approx(0.6, abs=0.03)
    assert min(places) == 1 and max(places) == 4


def test_what_does_not_fit_is_cut_behind_the_last_token_stands_the_end():
    full = report(*range(1, 11))
    assert full[-2:] == [0, 0]
    for seed in range(50):
        wrong, _ = copies([full, report(31)], seed)
        assert wrong != full and wrong[-1] == 0 and 0 not in wrong[:20]


def test_an_unfinished_sentence_is_kept_and_a_prompt_alone_is_left():
    cut = [60, 62, 1, 61, 2, 3] + [0] * (LENGTH - 6)
    found = [copies([cut, report(31)], seed)[0] for seed in range(40)]
    assert all(wrong != cut for wrong in found)
    assert sum(wrong[wrong.index(0) - 2 : wrong.index(0)] == [2, 3] for wrong in found) > 10
    assert sentences(copies([report(), report()], 0)[0]) == [60, 60]


def test_no_copy_is_the_report_itself():
    """Where reports share sentences, the one that comes may be the one that was left out."""
    reports = [report(1, 2, 3), report(1, 2, 4)]
    for seed in range(600):
        pairs = zip(reports, copies(reports, seed), strict=True)
        assert all(sorted(wrong) != sorted(own) for own, wrong in pairs)


def test_one_report_has_no_other():
    with pytest.raises(ValueError, match="needs two reports of each dataset, got 1"):
        copies([report(1)], 0)


def test_the_same_copies_twice():
    reports = [report(1, 2, 3), report(11, 12, 13)]
    assert copies(reports, 5) == copies(reports, 5) != copies(reports, 6)
