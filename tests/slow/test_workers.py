"""Stages by several workers write the bytes of one process; a training by two processes is that of one."""

import hashlib
import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STAGES = (
    ("prepare_data", "data/pairs"),
    ("tokenize_pairs", "data/tokens"),
    ("generate --model medim", "generated/medim"),
    ("synthesize_pairs --generator medim", "synthetic/medim"),
)


def hashes(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    "engine",
    ["local", pytest.param("ray", marks=pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed"))],
)
def test_stages_by_two_workers_write_the_same_bytes(fresh, engine):
    world = fresh.folder / "runs/small"
    for stage, output in STAGES:
        before = hashes(world / output)
        fresh.python("-m", *f"stages.{stage}".split(), MEDIM_ENGINE=engine, MEDIM_WORKERS="2", MEDIM_SHARD_ROWS="20")
        assert hashes(world / output) == before, stage
    assert not [path for path in (fresh.folder / ".work").glob("*/*") if path.is_dir()]


@pytest.mark.parametrize("parallel", ["copies", "fsdp"])
def test_two_processes_of_torchrun_train_medim_as_one_does(fresh, parallel):
    model = fresh.folder / "runs/small/models/medim"
    alone, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    fresh.python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stages.train_medim",
        "--variant", "medim", "--parallel", parallel,
    )  # fmt: skip
    both = load_file(model / "model.safetensors")
    assert both.keys() == alone.keys()
    far = torch.cat([(both[name].float() - alone[name].float()).flatten() for name in alone]).norm()
    assert float(far / torch.cat([value.float().flatten() for value in alone.values()]).norm()) < 1e-2
    assert json.loads((model / "config.json").read_text()) == config | {"processes": 2}
    costs = json.loads((fresh.folder / "runs/small/costs/train_medim@medim.json").read_text())
    assert costs["parameters"] >= sum(value.numel() for value in alone.values())
