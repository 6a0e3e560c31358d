"""First rows of codes: the codebook's geometry at the embedding's scale."""

import pytest
import torch
from test_mllm import VOCAB, build

from medim.backbones.code_rows import set_code_rows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_near_codes_have_near_rows_at_the_same_scale():
    codebook = torch.randn(300, 16, generator=generator(1)) * 7 + 3
    codebook[1] = codebook[0] + 0.01
    rows = 0.05 * torch.randn(300, 128, generator=generator(2))
    set_code_rows(rows, codebook, generator())
    assert float(rows.std()) == pytest.approx(0.05, rel=0.05)
    distances, theirs = torch.cdist(rows, rows), torch.cdist(codebook, codebook)
    upper = torch.triu_indices(300, 300, 1)
    both = torch.stack([distances[upper[0], upper[1]], theirs[upper[0], upper[1]]])
    assert float(torch.corrcoef(both)[0, 1]) > 0.8
    assert float(distances[0, 1]) < 0.5 * float(distances[0].median()) and not torch.equal(rows[0], rows[1])


def test_settings_choose_and_words_keep_theirs():
    codebook = torch.randn(VOCAB.n_image, 4, generator=generator(1))
    for choice, changed in (("drawn", False), ("codebook", True)):
        before, model = build(code_rows=choice, tied=False), build(code_rows=choice, tied=False)
        model.start_codes(codebook, generator())
        rows, old = model.decoder.embed_tokens.weight, before.decoder.embed_tokens.weight
        assert torch.equal(rows[: VOCAB.image_offset], old[: VOCAB.image_offset])
        assert torch.equal(rows[VOCAB.image_offset :], old[VOCAB.image_offset :]) != changed
        assert torch.equal(model.head, rows)


def test_another_codebook_is_refused():
    with pytest.raises(ValueError, match="5 vectors, the embedding 24 rows"):
        build(code_rows="codebook").start_codes(torch.randn(5, 4), generator())
