import copy

import pytest
import tiny_language_writers as tiny
import torch

from medim.baselines.bllm_induction import Bootstrapping, ReportBank, induction_loss, summaries

TEXTS = {
    "cxr": ["x: the heart is normal", "x: the heart is big", "x: no nodule", "x: no nodule", "x: the heart is so big"],
    "path": ["p: glands", "p: many mitoses"],
}


def plan(**changes):
    values = {"align_steps": 4, "every": 1, "pairs": 2, "references": 1, "margin": 1.0, "coarse_weight": 0.0,
              "triplet_weight": 1.0, "refinement_weight": 1.0}  # fmt: skip
    return Bootstrapping(**{**values, **changes})


def test_references_come_from_the_own_domain_and_foreign_texts_from_the_others():
    bank = ReportBank(TEXTS)
    assert bank.references("x: the heart is big", 2) == ["x: the heart is so big", "x: the heart is normal"]
    assert bank.references("p: glands", 3) == ["p: many mitoses"]
    draw = torch.Generator().manual_seed(0)
    drawn = {bank.foreign("x: no nodule", draw) for _ in range(20)}
    assert drawn == set(TEXTS["path"])
    assert {bank.foreign("p: glands", draw) for _ in range(50)} == set(TEXTS["cxr"])
    assert copy.deepcopy(bank) is bank
    with pytest.raises(KeyError, match="'unseen'"):
        bank.references("unseen", 1)


def test_one_domain_is_not_enough():
    with pytest.raises(ValueError, match=r"two datasets .*got \{'cxr': 4\}; set bootstrapping\.triplet_weight: 0"):
        ReportBank({"cxr": TEXTS["cxr"]})
    with pytest.raises(ValueError, match="'path': 1"):
        ReportBank({**TEXTS, "path": ["p: glands", "p: glands"]})


def test_texts_are_read_from_the_pairs(tmp_path):
    files = tiny.inputs(tmp_path, {}).pairs
    bank = ReportBank.of_files({name: files[name]["train"] for name in tiny.PAIRS})
    assert sorted(text for texts in bank.texts.values() for text in texts) == sorted(tiny.TEXTS)


def test_the_triplet_margin_written_out():
    anchor, positive, negative = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    near, far = ((anchor - other + 1e-6).norm(dim=1) for other in (positive, negative))
    expected = (near - far + 0.7).clamp(min=0).mean()
    torch.testing.assert_close(induction_loss(anchor, positive, negative, 0.7), expected)
    assert float(induction_loss(anchor, anchor, negative + 100, 1.0)) == 0


def test_a_summary_is_the_mean_over_the_report():
    states = [torch.tensor([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]]), torch.tensor([[9.0, 9.0], [5.0, 6.0]])]
    assert summaries(states).tolist() == [[2.0, 3.0], [5.0, 6.0]]


def test_which_steps_refine():
    assert [step for step in range(9) if plan().refines(step)] == [4, 5, 6, 7, 8]
    assert [step for step in range(9) if plan(every=2, coarse_weight=1.0).refines(step)] == [4, 6, 8]
    with pytest.raises(ValueError, match="leaves steps without a loss"):
        plan(every=2)
    with pytest.raises(ValueError, match="pairs must be at least 1, got 0"):
        plan(pairs=0)
    with pytest.raises(ValueError, match="refinement_weight must be above 0"):
        plan(refinement_weight=0.0)
