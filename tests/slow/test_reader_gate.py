"""The judge of pictures is good enough to judge: macro finding F1 (with side) on held-out phantoms of both domains."""

from pathlib import Path

import pytest
import torch

from medim.data import get_domain
from medim.metrics.finding_reader import train_finding_reader
from pipeline.params import read_section
from stages.train_finding_reader import Section

PROFILE = Path(__file__).parents[2] / "profiles/phantom.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_f1_of_the_default_reader(tmp_path):
    params = read_section("train_finding_reader", Section, PROFILE)
    scores = {}
    train_finding_reader(
        {name: get_domain(name) for name in params.domains}, params.reader, optim=params.optim,
        seed=params.seed_offset, work=tmp_path / "work", out=tmp_path / "out",
        on_log=lambda _, values: scores.update(values), device=torch.device("cpu"),
    )  # fmt: skip
    assert {name: scores[f"val/{name}/f1"] >= 0.95 for name in params.domains} == dict.fromkeys(params.domains, True)
