import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from medim.precision import use_bf16
from medim.training import (
    Interrupted,
    Optimisation,
    Run,
    fit,
    latest_checkpoint,
    lr_factor,
    save_checkpoint,
    step_seed,
    train_step,
)

OPTIM = Optimisation(
    steps=12, batch_size=4, accumulate=2, lr=1e-2, warmup=3, restarts=1, weight_decay=0.1, beta1=0.9, beta2=0.99,
    clip=1.0, ema=0.9, precision="fp32", checkpoint_every=4, validate_every=6, log_every=1,
)  # fmt: skip


class Line:
    """Two players with dropout and noise, so that every source of randomness matters."""

    def __init__(self):
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.critic = nn.Linear(1, 1)

    def players(self):
        return {"net": self.net, "critic": self.critic}

    def loss(self, player, batch, step, generator):
        noisy = batch + torch.randn(batch.shape, generator=generator)
        out = self.net(noisy)
        if player == "net":
            return (out - batch.sum(1, keepdim=True)).square().mean(), {"mean": out.mean()}
        return (self.critic(out.detach()) - 1).square().mean(), {}


def batches(step, part):
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(step * 10 + part))


def run(work, optim=OPTIM, trainee=None, on_log=lambda *_: None, validate=None):
    trainee = trainee or Line()
    result = fit(trainee, batches, optim, seed=3, work=work, name="line", on_log=on_log, validate=validate)
    state = torch.load(latest_checkpoint(work), weights_only=True)
    return result, state


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("stop_at", [1, 4, 7, 11])
def test_a_stopped_run_ends_with_the_same_state_as_one_never_stopped(tmp_path, stop_at):
    _, whole = run(tmp_path / "whole")

    def stop(step, _):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        run(tmp_path / "cut", on_log=stop)
    assert stopped.value.code == 143
    result, resumed = run(tmp_path / "cut")
    assert result.started_at == stop_at and result.steps == 12
    assert same(whole, resumed)


def test_a_run_killed_while_it_writes_goes_on_from_the_checkpoint_before(tmp_path):
    _, whole = run(tmp_path / "whole")
    work = tmp_path / "cut"
    trainee = Line()
    run_ = Run(trainee, OPTIM)
    for _ in range(4):
        train_step(run_, trainee, batches, OPTIM, 3, False)
    save_checkpoint(run_.state(), work)
    (work / "step_000000008.partial").write_bytes(b"half a checkpo")
    result, resumed = run(work)
    assert result.started_at == 4 and not list(work.glob("*.partial"))
    assert same(whole, resumed)


def test_kill_9_at_a_random_moment(tmp_path):
    _, whole = run(tmp_path / "whole")
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); import test_training as t; from pathlib import Path;"
        "t.run(Path(sys.argv[1]), on_log=lambda step, _: (print(step, flush=True), time.sleep(0.05)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "cut"), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    killer = threading.Thread(target=lambda: [line for line in process.stdout if int(line) == 6 and process.kill()])
    killer.start()
    assert process.wait(60) == -signal.SIGKILL
    killer.join()
    result, resumed = run(tmp_path / "cut")
    assert result.started_at >= 4
    assert same(whole, resumed)


def test_warm_up_then_cosine_with_restarts():
    optim = Optimisation(**{**vars(OPTIM), "steps": 103, "warmup": 3, "restarts": 2})
    assert [lr_factor(s, optim) for s in (0, 1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert lr_factor(28, optim) == pytest.approx(0.5)  # half of the first cycle
    assert lr_factor(53, optim) == pytest.approx(1)  # restart
    assert lr_factor(103, optim) == 0


def test_the_average_is_the_ema_of_the_weights(tmp_path):
    trainee = Line()
    run_ = Run(trainee, OPTIM)
    expected = None
    for n in range(5):
        train_step(run_, trainee, batches, OPTIM, 3, False)
        weight = trainee.net[0].weight.detach().clone()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = weight if n == 0 else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(run_.result_module()[0].weight.detach(), expected)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch():
    class Mean:
        def __init__(self):
            torch.manual_seed(0)
            self.net = nn.Linear(3, 1)

        def players(self):
            return {"net": self.net}

        def loss(self, player, batch, step, generator):
            return self.net(batch).square().mean(), {}

    optim = Optimisation(**{**vars(OPTIM), "clip": 1e9, "ema": 0.0})
    a, b = Mean(), Mean()
    train_step(Run(a, optim), a, batches, optim, 0, False)
    whole = Optimisation(**{**vars(optim), "accumulate": 1})
    train_step(Run(b, whole), b, lambda s, _: torch.cat([batches(s, 0), batches(s, 1)]), whole, 0, False)
    torch.testing.assert_close(a.net.weight, b.net.weight)


def test_validation_sees_the_averaged_weights_in_eval_mode(tmp_path):
    seen = []

    def validate(module, step):
        seen.append((step, module.training, torch.is_grad_enabled()))
        return {"score": 1.0}

    logs = {}
    run(tmp_path, on_log=lambda step, values: logs.setdefault(step, {}).update(values), validate=validate)
    assert seen == [(6, False, False), (12, False, False)]
    assert logs[6]["val/score"] == 1.0 and set(logs) == set(range(1, 13))


def test_a_loss_that_is_not_finite_names_the_step(tmp_path):
    class Bad(Line):
        def loss(self, player, batch, step, generator):
            loss, extra = super().loss(player, batch, step, generator)
            return (loss * float("nan"), extra) if step == 2 else (loss, extra)

    with pytest.raises(FloatingPointError, match="at step 3"):
        run(tmp_path, trainee=Bad())


def test_seeds_differ_by_step_part_and_seed():
    seeds = {step_seed(a, b, c) for a in range(5) for b in range(50) for c in range(4)}
    assert len(seeds) == 1000 and all(0 <= s < 2**63 for s in seeds)


def test_unknown_precision_is_named():
    with pytest.raises(ValueError, match="'fp8'"):
        use_bf16("fp8", torch.device("cpu"))


def test_time_of_a_fit_is_its_own(tmp_path):
    start = time.perf_counter()
    result, _ = run(tmp_path)
    assert 0 < result.seconds <= time.perf_counter() - start
