"""Several processes train as one does: the same losses and weights, checkpoints for any number, one global count.

Two real gloo processes on the CPU (slow: each imports torch and transformers anew); the training of MeDiM itself is
started by torchrun.
"""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shared_training as shared
import tiny_medim as tiny
import torch
from safetensors.torch import load_file
from torch import nn

from medim.backbones.code_refiner import RefinerSettings
from medim.distributed import ALONE, Ranks, gathered, process_group, shard_as
from medim.model import load_medim
from medim.training import Interrupted, Run, latest_checkpoint

HERE = Path(__file__).parent
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
REFINED = replace(tiny.BACKBONE, code_refiner=RefinerSettings(channels=8, blocks=1))


def environment(**own):
    return os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}", "OMP_NUM_THREADS": "1"} | own


def work(rank, folder, parallel, own):
    """One process under torchrun's environment."""
    os.environ.update(own, RANK=rank, LOCAL_RANK=rank)
    shared.main(folder, parallel)


def start(folder, parallel):
    """Two processes, spawned: a fork of a process that has used OpenMP may hang."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
    spawn = multiprocessing.get_context("spawn")
    started = [spawn.Process(target=work, args=(rank, folder, parallel, own)) for rank in ("0", "1")]
    for process in started:
        process.start()
    return started


def alone_until(folder):
    """A checkpoint that one process wrote when it was stopped."""
    with pytest.raises(Interrupted):
        shared.train(folder, shared.stopping)
    return latest_checkpoint(folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """parallel -> (folder, what the first process saw, what the second saw)."""
    folders = {parallel: tmp_path_factory.mktemp(parallel) for parallel in ("copies", "fsdp")}
    for parallel, folder in folders.items():
        alone_until(folder / "alone")
        running = start(folder, parallel)
        for process in running:
            process.join(280)
        assert [process.exitcode for process in running] == [0, 0]
    return {
        parallel: (folder, *(torch.load(folder / f"seen_{rank}.pt", weights_only=False) for rank in (0, 1)))
        for parallel, folder in folders.items()
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """(folder, log lines, averaged weights) of one process."""
    folder = tmp_path_factory.mktemp("one")
    result, lines = shared.train(folder)
    return folder, lines, result.averaged.state_dict()


def same_weights(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], **CLOSE)


def same_lines(found, wanted):
    assert [line.keys() for line in found] == [line.keys() for line in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


parallel = pytest.mark.parametrize("parallel", ["copies", "fsdp"])


@pytest.mark.slow
@parallel
def test_two_processes_log_the_losses_of_one_and_end_with_its_weights(both, one, parallel):
    _, first, _ = both[parallel]
    lines, weights = first["whole"]
    same_lines(lines, one[1])  # loss, count of blanks, norm of the gradients, validation
    same_weights(weights, one[2])


@pytest.mark.slow
@parallel
def test_only_the_first_process_logs_and_writes(both, parallel):
    folder, _, second = both[parallel]
    assert second["whole"][0] == [] and second["resumed"][1] == []
    assert [path.name for path in (folder / "whole").iterdir()] == ["step_000000008.pt"]


@pytest.mark.slow
def test_copies_stay_equal_to_the_bit(both):
    _, first, second = both["copies"]
    assert all(torch.equal(value, second["whole"][1][name]) for name, value in first["whole"][1].items())


@pytest.mark.slow
@parallel
def test_a_signal_to_one_process_stops_both_at_the_same_step_and_they_go_on_to_the_same_bits(both, parallel):
    _, first, second = both[parallel]
    assert first["code"] == second["code"] == 143
    started, lines, weights = first["resumed"]
    assert started == second["resumed"][0] == shared.STOP_AT
    assert lines == [line for line in first["whole"][0] if line["step"] > shared.STOP_AT]
    assert all(torch.equal(value, weights[name]) for name, value in first["whole"][1].items())


@pytest.mark.slow
@parallel
def test_a_checkpoint_of_one_process_loads_in_two(both, one, parallel):
    _, first, _ = both[parallel]
    started, _, weights = first["from_one"]
    assert started == shared.STOP_AT
    same_weights(weights, one[2])


@pytest.mark.slow
@parallel
def test_a_checkpoint_of_two_processes_loads_in_one(both, one, parallel, tmp_path):
    folder, first, _ = both[parallel]
    written = torch.load(folder / "whole" / "step_000000008.pt", weights_only=True)
    alone = torch.load(latest_checkpoint(one[0]), weights_only=True)

    def shapes(value):
        if isinstance(value, dict):
            return {key: shapes(item) for key, item in value.items()}
        return tuple(value.shape) if isinstance(value, torch.Tensor) else value

    assert shapes(written) == shapes(alone)
    shutil.copytree(folder / "whole", tmp_path / "work")
    result, _ = shared.train(tmp_path / "work")
    assert result.started_at == 8
    assert all(torch.equal(value, first["whole"][1][name]) for name, value in result.averaged.state_dict().items())


@pytest.mark.slow
def test_the_optimiser_moves_sharded_weights(both):
    before = shared.Blanks(seed=1).net.state_dict()
    after = both["fsdp"][1]["whole"][1]
    assert all(not torch.equal(before[name], after[name]) for name in before if name != "scale")
    assert torch.equal(before["scale"], after["scale"])


def shares(world, changes):
    """Losses, gradients and logs of MeDiM's shares, and of one process, on a batch of one part."""
    data, settings = tiny.tokens(6), replace(tiny.LOSS, **changes)
    out = []
    for ranks in (ALONE, *(Ranks(rank, world, None) for rank in range(world))):
        model = tiny.medim(backbone=REFINED)
        with torch.no_grad():  # what starts at 0 would hide the gradients behind it
            for parameter in model.backbone.refiner.parameters():
                parameter.add_(0.1)
        found = model.loss(data.batch(np.arange(6)), settings, torch.Generator().manual_seed(4), ranks)
        found.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        out.append((found, gradients))
    return out


@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.parametrize("changes", [{}, {"complementary": True}])
def test_the_shares_of_medims_loss_sum_to_it(world, changes):
    (whole, gradients), *parts = shares(world, changes)
    torch.testing.assert_close(sum(part.loss for part, _ in parts), whole.loss, **CLOSE)
    torch.testing.assert_close(sum(g for _, g in parts), gradients, **CLOSE)
    for name, value in whole.logs().items():
        torch.testing.assert_close(sum(part.logs()[name] for part, _ in parts), value)


def test_the_count_is_that_of_the_whole_batch():
    """Pictures alone in some rows, reports alone in others: the processes have different numbers of maskable tokens."""
    changes = {"states": {"report_alone": 0.5, "picture_alone": 0.5}, "prompt_keep": 0.0, "length_known": 0.0}
    (whole, _), *parts = shares(2, changes)
    assert all(torch.equal(part.text_tokens, whole.text_tokens) for part, _ in parts)
    own = [int(whole.text_tokens[r::2].sum() + whole.image_tokens[r::2].sum()) for r in range(2)]
    assert own[0] != own[1]  # so the mean of the processes' own means is another number
    torch.testing.assert_close(parts[0][0].loss + parts[1][0].loss, whole.loss, **CLOSE)


def test_more_processes_than_rows_are_refused():
    with pytest.raises(ValueError, match="4 processes cannot share a part of 3 rows"):
        Ranks(0, 4, None).rows(3)
    rows = [list(range(7))[Ranks(rank, 3, None).rows(7)] for rank in range(3)]
    assert rows == [[0, 3, 6], [1, 4], [2, 5]]


def test_a_trainee_that_shares_nothing_is_refused_under_torchrun(monkeypatch):
    class Unshared:
        def players(self):
            return {"net": nn.Linear(1, 1)}

        def loss(self, *_):
            raise AssertionError

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="Unshared is trained by 1 process, torchrun started 2"):
        Run(Unshared(), shared.OPTIM)


def test_without_torchrun_there_is_no_group():
    with process_group(torch.device("cpu"), "fsdp") as device:
        assert device.type == "cpu" and not torch.distributed.is_initialized()
    with pytest.raises(ValueError, match="--parallel must be copies or fsdp, got 'ddp'"), process_group(device, "ddp"):
        pass


def test_whole_tensors_stay_the_same_objects():
    weight = torch.ones(2)
    state = {"a": [weight, 3], "b": (weight,)}
    assert gathered(state)["a"][0] is weight and gathered(state)["b"][0] is weight
    assert shard_as(weight, torch.zeros(2)) is weight


@pytest.fixture(scope="module")
def medim_alone(tmp_path_factory):
    """The folder and the losses of MeDiM trained by one process."""
    folder = tmp_path_factory.mktemp("medim")
    return torchrun(folder, "copies", 1)


def torchrun(folder, parallel, processes):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        str(HERE / "shared_medim.py"), str(folder), parallel,
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return folder / "out", torch.load(folder / "losses.pt")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("parallel", ["copies", "fsdp"])
def test_torchrun_trains_medim_as_one_process_does(parallel, medim_alone, tmp_path):
    out, losses = torchrun(tmp_path, parallel, 2)
    alone, wanted = medim_alone
    assert losses.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(losses[name], wanted[name], rtol=1e-4, atol=1e-5)
    found, expected = load_file(out / "model.safetensors"), load_file(alone / "model.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        # behind zeros gradients begin at 0, and Adam takes steps of its whole rate by the sign of their rounding
        steps = tiny.OPTIM.steps * tiny.OPTIM.lr if name.startswith("refiner.") else 0.0
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=max(1e-4, 0.5 * steps))
    config = json.loads((out / "config.json").read_text())
    assert config.pop("processes") == 2 and config == json.loads((alone / "config.json").read_text())
    load_medim(out)
