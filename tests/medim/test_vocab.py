import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medim.vocab import FIXED, IMAGE, TEXT, SequenceLayout, SharedVocab


def test_the_released_checkpoint_has_40196_rows():
    vocab = SharedVocab(n_text=32003, n_image=8192)
    assert (vocab.mask_id, vocab.image_offset, vocab.size) == (32003, 32004, 40196)


@given(st.integers(1, 50), st.integers(1, 50), st.data())
def test_codes_survive_the_way_there_and_back(n_text, n_image, data):
    vocab = SharedVocab(n_text, n_image)
    codes = torch.tensor(data.draw(st.lists(st.integers(0, n_image - 1), min_size=1)))
    ids = vocab.from_codes(codes)
    assert torch.equal(vocab.to_codes(ids), codes)
    assert (ids > vocab.mask_id).all() and (ids < vocab.size).all()


def test_masked_codes_are_the_code_behind_the_last():
    vocab = SharedVocab(n_text=7, n_image=5)
    ids = torch.tensor([[8, 12, 7], [7, 7, 10]])
    assert vocab.to_masked_codes(ids).tolist() == [[0, 4, 5], [5, 5, 2]]


def test_ids_of_the_wrong_kind_are_refused():
    vocab = SharedVocab(10, 4)
    with pytest.raises(ValueError, match="image codes must lie in"):
        vocab.from_codes(torch.tensor([4]))
    for wrong in (vocab.mask_id, 3, vocab.size):
        with pytest.raises(ValueError, match="image positions must hold"):
            vocab.to_codes(torch.tensor([wrong]))
    for wrong in (vocab.mask_id, vocab.image_offset, -1):
        with pytest.raises(ValueError, match="report tokens must lie"):
            vocab.check_text(torch.tensor([wrong]))


def test_the_layout_is_boi_image_eoi_report():
    layout = SequenceLayout(n_text=3, n_image=2)
    assert layout.length == 7
    assert layout.modality().tolist() == [FIXED, IMAGE, IMAGE, FIXED, TEXT, TEXT, TEXT]
