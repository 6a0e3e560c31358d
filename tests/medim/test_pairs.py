import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medim.pairs import (
    PAIR_SCHEMA,
    Pair,
    TableWriter,
    decode_masks,
    decode_png,
    encode_masks,
    encode_png,
    full_text,
    iter_pairs,
    iter_rows,
    load_images,
    read_pairs,
    split_prompt,
    write_pairs,
)

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def pair(number: int) -> Pair:
    return Pair(f"d-{number}", f"s-{number}", f"p-{number}", "d", "here", encode_png(PICTURE), "chest x-ray", "Clear.")


def test_pairs_survive_the_file_and_come_in_order(tmp_path):
    path = tmp_path / "x" / "train.parquet"
    assert write_pairs(path, map(pair, range(11)), group_rows=4) == 11
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    assert pq.read_schema(path).equals(PAIR_SCHEMA)
    assert list(iter_pairs(path, batch_rows=3)) == list(map(pair, range(11)))
    assert len(read_pairs(path, limit=5)) == 5 and len(read_pairs(path, limit=0)) == 0
    assert np.array_equal(load_images(read_pairs(path, 2))[1], PICTURE)


def test_a_failed_write_leaves_no_file(tmp_path):
    def broken():
        yield pair(0)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_pairs(tmp_path / "a.parquet", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="dvc repro prepare_data"):
        read_pairs(tmp_path / "none.parquet")


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda s: (*s, 3))))
def test_png_keeps_every_pixel(pixels):
    assert np.array_equal(decode_png(encode_png(pixels)), pixels)


@given(st.dictionaries(st.text(max_size=5), hnp.arrays(bool, (7, 7)), max_size=4))
def test_masks_survive(masks):
    found = decode_masks(encode_masks(masks))
    assert found.keys() == masks.keys() and all(np.array_equal(found[k], masks[k]) for k in masks)


@given(st.text(alphabet="abc ,", max_size=9), st.text(alphabet="abc:. ", max_size=20))
def test_the_prompt_comes_off_again(prompt, report):
    assert split_prompt(full_text(prompt, report)) == (prompt.strip(), report.strip())


def test_a_text_without_prompt_is_all_report():
    assert split_prompt("The heart is normal.") == ("", "The heart is normal.")
    with pytest.raises(ValueError, match="may not hold"):
        full_text("a: b", "c")


def test_only_the_row_groups_at_hand_are_in_memory(tmp_path):
    path, noise = tmp_path / "large.parquet", np.random.default_rng(0)
    with TableWriter(path, pa.schema([pa.field("data", pa.binary())]), group_rows=4) as writer:
        for _ in range(64):
            writer.write({"data": noise.bytes(2**18)})
    before, most = pa.total_allocated_bytes(), 0
    for row in iter_rows(path, ["data"], batch_rows=4):
        assert len(row["data"]) == 2**18
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < path.stat().st_size / 3
