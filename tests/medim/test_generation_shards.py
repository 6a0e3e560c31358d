"""Answers by shards: parts that other processes made become the bytes that one process writes."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_medim as tiny
import torch

from medim.generation import questions
from medim.generation_shards import answer_all, answer_jobs, make_answers, open_system, system_values
from medim.pairs import Pair, encode_png, read_pairs, write_pairs
from medim.tokenizers.vqgan import save_vqgan

HOW = {"seed": 5, "masks": 2, "chunk": 2}


@pytest.fixture
def world(tmp_path):
    """Folders of a system, and the test pairs of two datasets."""
    rng = np.random.default_rng(0)
    tiny.medim().save(tmp_path / "medim")
    save_vqgan(tiny.vqgan(), tmp_path / "vqgan")
    for name, num in (("a", 3), ("b", 2)):
        pictures = [encode_png(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)) for _ in range(num)]
        rows = [
            Pair(f"{name}-{n}", "s", "p", name, "", png, "chest x-ray", "there is a left effusion.")
            for n, png in enumerate(pictures)
        ]
        write_pairs(tmp_path / f"{name}.parquet", rows)
    return tmp_path


def test_parts_made_by_workers_are_joined_to_the_same_bytes(world):
    files = {name: world / f"{name}.parquet" for name in ("a", "b")}
    own = {"joint": replace(tiny.SAMPLER, text_steps=2)}
    values = system_values(world / "medim", world / "vqgan", tiny.SAMPLER, own, torch.device("cpu"))
    system = open_system(**values)
    test = {name: read_pairs(file) for name, file in files.items()}
    asked = questions(system, test, ["image_to_report", "report_to_image", "joint"], 3)
    sides = {"a": test["a"]}
    total = answer_all(system, asked, sides, parts=world / "one", out=world / "whole", **HOW)
    ask = make_answers(system=values, **HOW)
    jobs = list(answer_jobs(system, asked, sides, files, HOW["chunk"], world / "parts"))
    for source, target, arguments in jobs:
        ask(source, target, **arguments)
    assert sorted(path.name for path in (world / "parts").iterdir()) == sorted(
        path.name for path in (world / "one").iterdir()
    )

    class Silent:
        """Answers nothing: all must be in the parts."""

        tasks, row = system.tasks, system.row

        def report_log_p(self, *_):
            raise AssertionError

    assert answer_all(Silent(), asked, sides, parts=world / "parts", out=world / "joined", **HOW) == total
    whole = {path.relative_to(world / "whole"): path.read_bytes() for path in (world / "whole").rglob("*.parquet")}
    assert whole == {
        path.relative_to(world / "joined"): path.read_bytes() for path in (world / "joined").rglob("*.parquet")
    }
    assert len(whole) == 6
