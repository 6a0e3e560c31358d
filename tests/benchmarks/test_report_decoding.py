"""The comparison of ways to write reports, at tiny sizes."""

import pytest
import torch

from benchmarks.report_decoding import (
    Comparison,
    answer_per_study,
    compare_decoding,
    compare_memory,
    line,
)
from medim.baselines.r2gen_cmn_network import CMNSizes, SharedMemory
from medim.baselines.r2gen_network import R2GenSizes
from medim.baselines.report_decoder import DecoderSizes

DECODER = DecoderSizes(width=16, inner=16, heads=2, layers=2, dropout=0.1, feature_dropout=0.5)
SIZES = {"r2gen": R2GenSizes(DECODER, slots=2, memory_heads=2), "r2gen_cmn": CMNSizes(DECODER, slots=8, top=3)}


@pytest.mark.parametrize("method", SIZES)
@pytest.mark.parametrize("num_ids", [5, 50])  # with few words many texts end early
def test_both_ways_write_the_same(method, num_ids):
    found = compare_decoding(SIZES[method], features=12, patches=4, num_ids=num_ids, batch=5, beams=3, length=9)
    assert found.equal and found.ratio > 0


@pytest.mark.parametrize("training", [False, True])
def test_both_ways_answer_the_same(training):
    assert compare_memory(SIZES["r2gen_cmn"], patches=3, words=4, batch=2, training=training).equal


def test_a_study_alone_is_answered_as_in_a_batch():
    torch.manual_seed(0)
    memory = SharedMemory(16, 8, 3, 2, 0.0)
    memory.init_weights()
    x = torch.randn(3, 2, 16)
    torch.testing.assert_close(answer_per_study(memory, x)[1:2], answer_per_study(memory, x[1:2]))


def test_a_line_says_both_times_and_the_goal():
    text = line("r2gen", 15.0, Comparison(3.0, 0.1, True))
    assert "3.000 s" in text and "30.0x (goal 15x)" in text and text.endswith("answers equal: True")
