"""Synthetic pairs that Qwen2-VL judges instead of the phantom judge: its scores, its name, and what the card says."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_medim as tiny
import torch
from certain_reader import certain_reader
from tiny_qwen import make_model, make_processor

from medim.data.splits import drawn_pairs
from medim.generation_shards import system_values
from medim.metrics.finding_reader import save_finding_reader
from medim.metrics.qwen_judge import QwenSettings, load_qwen_judge
from medim.pairs import decode_png, write_pairs
from medim.synthesis import SynthesisSettings, read_held_out, write_held_out
from medim.synthesis_card import CardSettings, data_card
from medim.synthesis_shards import maker_values, open_maker
from medim.tokenizers.vqgan import save_vqgan

PROMPTS = {"phantom_cxr": ["chest x-ray"], "mine": ["chest x-ray"]}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    processor = make_processor()
    processor.save_pretrained(folder)
    make_model(processor, spread=0.4).save_pretrained(folder)
    return QwenSettings("Qwen2-VL", str(folder), 28 * 28 * 4, 28 * 28 * 16, 8, 3, "float32")


@pytest.fixture(scope="module")
def maker(qwen, tmp_path_factory):
    """A generator and its judge, with pairs of a drawn and of an imported dataset."""
    folder = tmp_path_factory.mktemp("world")
    tiny.medim().save(folder / "medim")
    save_vqgan(tiny.vqgan(), folder / "vqgan")
    save_finding_reader(certain_reader("edema"), folder / "reader")
    files = {name: {split: folder / name / f"{split}.parquet" for split in ("train", "val")} for name in PROMPTS}
    for some in files.values():
        for split, path in some.items():
            write_pairs(path, drawn_pairs("phantom_cxr", split, 0, 6, 32))
    values = maker_values(
        system=system_values(folder / "medim", folder / "vqgan", tiny.SAMPLER, {}, torch.device("cpu")),
        reader=folder / "reader", origin=("medim", "abc"), seed=3, prompts=PROMPTS, files=files,
        settings=SynthesisSettings(pairs=4, shard=2, chunk=2, frequency="equal", pmi_masks=0), work=folder / "work",
        judge=qwen,
    )  # fmt: skip
    return open_maker(**values)


def test_each_pair_has_the_judges_own_score_and_name(maker, qwen, tmp_path):
    judge = load_qwen_judge(qwen, torch.device("cpu"))
    for name in PROMPTS:
        maker.write(name, tmp_path / f"{name}.parquet")
        rows = pq.read_table(tmp_path / f"{name}.parquet").to_pylist()
        images = np.stack([decode_png(row["image"]) for row in rows])
        expected = judge.scores(images, [row["report"] for row in rows])
        assert {row["judge"] for row in rows} == {"Qwen2-VL"}
        np.testing.assert_allclose([row["alignment"] for row in rows], expected, atol=1e-6)
        assert [row["faithful"] is None for row in rows] == [name == "mine"] * 4  # read by the finding reader


def test_the_card_names_the_judge_and_scores_real_pairs_by_it(maker, tmp_path):
    references = {name: maker.asked(name).scorer.reference for name in PROMPTS}
    for name in PROMPTS:
        maker.write(name, tmp_path / f"{name}.parquet")
    write_held_out(tmp_path, {name: maker.asked(name).scorer.held_out() for name in PROMPTS})
    card = data_card("medim", {}, tmp_path, references, CardSettings(10, (), 2, 1), 0)
    lines = [line for line in card.splitlines() if line.startswith("| alignment (Qwen2-VL) |")]
    assert len(lines) == 2 and not any("not measured" in line for line in lines)
    real = read_held_out(tmp_path, "mine")["alignment"]
    assert f"{real.mean():.3f}" in lines[1]
    assert "The alignment is that of Qwen2-VL." in card and "no independent evidence" not in card
