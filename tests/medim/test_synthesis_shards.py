"""Synthetic pairs by shards: parts that other processes made become the bytes that one process writes."""

import numpy as np
import pytest
import tiny_medim as tiny
import torch
from certain_reader import certain_reader

from medim.data.splits import drawn_pairs
from medim.generation_shards import system_values
from medim.metrics.finding_reader import save_finding_reader
from medim.pairs import write_pairs
from medim.synthesis import SynthesisSettings, TrainingPictures
from medim.synthesis_shards import make_pairs, maker_values, open_maker
from medim.tokenizers.vqgan import save_vqgan

SETTINGS = SynthesisSettings(pairs=5, shard=2, chunk=1, frequency="equal", pmi_masks=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of a generator and its judge, and pairs of two datasets: a drawn and an imported one."""
    folder = tmp_path_factory.mktemp("world")
    tiny.medim().save(folder / "medim")
    save_vqgan(tiny.vqgan(), folder / "vqgan")
    save_finding_reader(certain_reader("edema"), folder / "reader")
    for name in ("phantom_cxr", "mine"):
        for split, count in (("train", 30), ("val", 12)):
            write_pairs(folder / name / f"{split}.parquet", drawn_pairs("phantom_cxr", split, 0, count, 32))
    return folder


def values(world, work, prompts, settings=SETTINGS, judge=None):
    files = {name: {split: world / name / f"{split}.parquet" for split in ("train", "val")} for name in prompts}
    system = system_values(world / "medim", world / "vqgan", tiny.SAMPLER, {}, torch.device("cpu"))
    return maker_values(
        system=system, reader=world / "reader", origin=("medim", "abc"), seed=3, prompts=prompts, files=files,
        settings=settings, work=work, judge=judge,
    )  # fmt: skip


def test_parts_made_by_workers_are_joined_to_the_same_bytes(world, tmp_path):
    prompts = {"phantom_cxr": ["chest x-ray"], "mine": ["chest x-ray"]}
    alone = open_maker(**values(world, tmp_path / "one", prompts))
    counts = [alone.write(name, tmp_path / "whole" / f"{name}.parquet") for name in prompts]
    assert counts == [5, 5]
    handed = values(world, tmp_path / "many", prompts)
    driver = open_maker(**handed)
    jobs = list(driver.jobs())
    assert [(job[2]["dataset"], job[2]["start"], job[2]["stop"]) for job in jobs] == [
        (name, start, min(start + 2, 5)) for name in prompts for start in (0, 2, 4)
    ]
    make = make_pairs(**handed)
    for source, target, arguments in reversed(jobs):  # whichever comes first
        assert source.is_file()
        assert make(source, target, **arguments) == {"pairs": arguments["stop"] - arguments["start"]}
    driver.generator = None  # all must be in the parts
    for name in prompts:
        out = tmp_path / "joined" / f"{name}.parquet"
        assert driver.write(name, out) == 5
        assert out.read_bytes() == (tmp_path / "whole" / f"{name}.parquet").read_bytes()


def test_features_of_training_pictures_are_computed_once(world, tmp_path):
    reader, train = certain_reader("edema"), world / "phantom_cxr/train.parquet"
    computed = TrainingPictures(reader, train, tmp_path / "features/x.npz")
    read = TrainingPictures(None, None, tmp_path / "features/x.npz")
    assert read.ids == computed.ids and len(read.ids) == 30
    for mine, theirs in zip(read.blocks, computed.blocks, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["x.npz"]


def test_a_wrong_prompt_is_refused_before_anything_is_made(world, tmp_path):
    maker = open_maker(**values(world, tmp_path / "work", {"mine": ["chest xray"]}))
    with pytest.raises(
        ValueError, match="no pair of mine begins with 'chest xray', the nearest prompt is 'chest x-ray"
    ):
        list(maker.jobs())
    assert not (tmp_path / "work/shards").exists()
