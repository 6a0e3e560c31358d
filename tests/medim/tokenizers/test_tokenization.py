"""Token files by shards: the bytes of the file that is written at once."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from medim.pairs import Pair, encode_png, iter_pairs, join_tables, write_pairs
from medim.tokenizers.text import TextTokenizer
from medim.tokenizers.tokenization import TOKEN_SCHEMA, make_tokens, tokenize_split
from medim.tokenizers.vqgan import VQGAN, VQGANConfig, save_vqgan

NUM, BATCH, LENGTH = 21, 4, 12


def tokenizers():
    """Untrained ones, always the same."""
    torch.manual_seed(0)
    vqgan = VQGAN(VQGANConfig(24, 4, 4, 8, (1, 1, 1, 1), 1, 4)).eval()
    return TextTokenizer.train(["x-ray: Clear 12."] * 4, 280), vqgan


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [encode_png(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(NUM)]
    rows = [Pair(f"d-{n}", "s", "p", "d", "", png, "x-ray", f"Clear {n}.") for n, png in enumerate(pictures)]
    write_pairs(tmp_path / "pairs.parquet", rows, group_rows=6)
    return tmp_path / "pairs.parquet"


@pytest.mark.parametrize("rows", [(0, NUM), (0, 6), (5, 7), (6, 12), (13, 21), (20, 30), (3, 3), None])
def test_a_range_of_rows(pairs, rows):
    wanted = list(range(NUM))[slice(*rows) if rows else slice(None)]
    assert [int(pair.pair_id[2:]) for pair in iter_pairs(pairs, 4, rows)] == wanted


def test_shards_that_begin_with_a_batch_become_the_bytes_of_the_whole_file(pairs, tmp_path):
    text, vqgan = tokenizers()
    text.save(tmp_path / "text")
    save_vqgan(vqgan, tmp_path / "vqgan")
    whole = tmp_path / "whole.parquet"
    counts = tokenize_split(pairs, whole, text, vqgan, LENGTH, BATCH)
    work = make_tokens(
        tokenizer=str(tmp_path / "text"), vqgan=str(tmp_path / "vqgan"), length=LENGTH, batch=BATCH, device="cpu"
    )
    parts = []
    for start in range(0, NUM, 2 * BATCH):
        part = tmp_path / f"{start}.parquet"
        parts.append((part, work(pairs, part, start=start, stop=start + 2 * BATCH)))
    joined = tmp_path / "joined.parquet"
    assert join_tables([part for part, _ in parts], joined, TOKEN_SCHEMA) == NUM == pq.read_metadata(whole).num_rows
    assert hashlib.sha256(joined.read_bytes()).digest() == hashlib.sha256(whole.read_bytes()).digest()
    assert {name: sum(count[name] for _, count in parts) for name in counts} == counts


def test_an_empty_range_is_an_empty_file(pairs, tmp_path):
    out, (text, vqgan) = tmp_path / "empty.parquet", tokenizers()
    assert tokenize_split(pairs, out, text, vqgan, LENGTH, BATCH, (0, 0)) == {"pairs": 0, "cut": 0}
    assert pq.read_schema(out).equals(TOKEN_SCHEMA)
