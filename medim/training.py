"""The one training loop: every network of the project is trained by `fit`.

A training is a function of its settings and its seed alone: the batch and all random draws of a step are derived from
(seed, step), so a run killed at any moment and started again ends with the bytes of one never killed.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from medim.distributed import ALONE, Ranks, gathered, local, processes, shard_as, shard_optimiser_state, whole
from medim.precision import PRECISIONS, use_bf16

OnLog = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Optimisation:
    """How a network is trained; the values stand in params.yaml, none here."""

    steps: int  # optimiser steps
    batch_size: int  # examples a step, over all accumulated parts
    accumulate: int  # parts a batch is cut into
    lr: float  # peak learning rate
    warmup: int  # steps of linear warm-up from 0
    restarts: int  # cosine cycles after the warm-up; 1 = no restart
    weight_decay: float
    beta1: float
    beta2: float
    clip: float  # norm that gradients are clipped to
    ema: float  # decay of the averaged weights; 0 = off
    precision: str  # auto | bf16 | fp32
    checkpoint_every: int  # steps
    validate_every: int  # steps; 0 = only at the end
    log_every: int  # steps

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: names the parameter, its value and what is possible.
        """
        ranges = (
            (("steps", "batch_size", "accumulate", "restarts", "checkpoint_every", "log_every"), 1, math.inf),
            (("lr", "clip"), math.ulp(0.0), math.inf),
            (("warmup", "validate_every", "weight_decay"), 0, math.inf),
            (("beta1", "beta2", "ema"), 0, 1),
        )
        for names, least, below in ranges:
            for name in names:
                if not least <= getattr(self, name) < below:
                    raise ValueError(f"{name} must lie in [{least}, {below}), got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}")


class Trainee(Protocol):
    """What `fit` trains: one or more players (a GAN has two), each with its own optimiser; the first is averaged."""

    def players(self) -> dict[str, nn.Module]:
        """Name -> the module whose parameters this player's loss moves."""

    def loss(self, player: str, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and scalars to log. All randomness comes from `generator` or torch's seeded default."""


@runtime_checkable
class SharedTrainee(Trainee, Protocol):
    """A trainee that several processes train together (medim.distributed): its `loss` returns the shares of `ranks`."""

    ranks: Ranks

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """Modules of a player whose weights FSDP2 gathers one block at a time."""


def ranks_of(trainee: Trainee) -> Ranks:
    """The processes that train it.

    Raises:
        ValueError: torchrun started several, and the trainee does not share its batches.
    """
    ranks = trainee.ranks if isinstance(trainee, SharedTrainee) else ALONE
    if ranks.world != processes():
        raise ValueError(
            f"{type(trainee).__name__} is trained by {ranks.world} process, torchrun started {processes()}: "
            f"start this stage without torchrun"
        )
    return ranks


@dataclass(frozen=True)
class FitResult:
    """What a training leaves: `averaged` holds the EMA weights (the raw ones where ema = 0)."""

    averaged: nn.Module
    started_at: int  # step from which this process went on; 0 = from the beginning
    steps: int
    seconds: float  # of this process


class Interrupted(SystemExit):
    """Raised after a checkpoint was written on SIGTERM; exit code 143."""


def lr_factor(step: int, optim: Optimisation) -> float:
    """Warm-up, then cosine annealing with hard restarts (paper Sec. 3.1): factor of the peak rate at a step from 0."""
    if step < optim.warmup:
        return (step + 1) / optim.warmup
    progress = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
    return 0.5 * (1 + math.cos(math.pi * ((progress * optim.restarts) % 1.0))) if progress < 1 else 0.0


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """One 63-bit seed per (training, step, part of the batch), by splitmix64's finaliser."""
    x = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + part * 0x94D049BB133111EB + 1) & (2**64 - 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = ((x ^ (x >> shift)) * factor) & (2**64 - 1)
    return (x ^ (x >> 31)) >> 1


def ema_update(decay: float) -> Callable[[Any, Any, Any], None]:
    """EMA whose decay warms up as min(decay, (1 + n) / (10 + n)), so that early weights are forgotten."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, num_averaged: Any) -> None:
        n = float(num_averaged)
        torch._foreach_lerp_(list(map(local, averaged)), list(map(local, current)), 1 - min(decay, (1 + n) / (10 + n)))

    return update


class Run:
    """The state of one training: weights, optimisers, EMA and step, with exact save and load."""

    def __init__(self, trainee: Trainee, optim: Optimisation) -> None:
        self.players = trainee.players()
        if not self.players:
            raise ValueError("a trainee needs at least one player")
        first = next(iter(self.players.values()))
        self.device = next(first.parameters()).device
        self.ranks = ranks_of(trainee)
        self.averaged = AveragedModel(first, multi_avg_fn=ema_update(optim.ema)) if optim.ema else None
        self._share(trainee)
        self.optimisers: dict[str, AdamW] = {}
        for name, module in self.players.items():
            groups = [
                [p for p in module.parameters() if p.requires_grad and (p.dim() > 1) == matrix]
                for matrix in (True, False)
            ]
            self.optimisers[name] = AdamW(
                [{"params": groups[0], "weight_decay": optim.weight_decay}, {"params": groups[1], "weight_decay": 0.0}],
                lr=optim.lr, betas=(optim.beta1, optim.beta2), fused=True,
            )  # fmt: skip
        self.schedules = {n: LambdaLR(o, lambda s: lr_factor(s, optim)) for n, o in self.optimisers.items()}
        self.step = 0

    def _share(self, trainee: Trainee) -> None:
        """Weights that all processes agree on, sharded where they have a mesh; see `Ranks.share`."""
        if isinstance(trainee, SharedTrainee):
            copies = [] if self.averaged is None else [self.averaged.module]
            for module in (*self.players.values(), *copies):
                self.ranks.share(module, trainee.blocks(module))

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; where weights are sharded, whole in the first process."""
        state: dict[str, Any] = {
            "step": self.step,
            "players": {n: m.state_dict() for n, m in self.players.items()},
            "optimisers": {n: o.state_dict() for n, o in self.optimisers.items()},
            "schedules": {n: s.state_dict() for n, s in self.schedules.items()},
            "averaged": self.averaged.state_dict() if self.averaged is not None else {},
        }
        return state if self.ranks.mesh is None else gathered(state)

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.step = int(state["step"])
        for name, module in self.players.items():
            module.load_state_dict(self._own(state["players"][name], module))
            self.optimisers[name].load_state_dict(self._own_optimiser(state["optimisers"][name], name))
            self.schedules[name].load_state_dict(state["schedules"][name])
        if self.averaged is not None:
            self.averaged.load_state_dict(self._own(state["averaged"], self.averaged))

    def _own(self, state: Mapping[str, Any], module: nn.Module) -> Mapping[str, Any]:
        """What this process holds of a module's whole state."""
        if self.ranks.mesh is None:
            return state
        own = module.state_dict()
        return {key: shard_as(value, own.get(key)) for key, value in state.items()}

    def _own_optimiser(self, state: dict[str, Any], name: str) -> dict[str, Any]:
        if self.ranks.mesh is None:
            return state
        return shard_optimiser_state(state, [p for g in self.optimisers[name].param_groups for p in g["params"]])

    def save(self, folder: Path) -> None:
        """A checkpoint of the whole state, written by the first process; all must call it."""
        state = self.state()
        if self.ranks.first:
            save_checkpoint(state, folder)

    def resume(self, folder: Path) -> bool:
        """Load the newest checkpoint, if there is one.

        With shards each process reads its own parts of the file only.
        """
        found = self.ranks.agreed(latest_checkpoint(folder) if self.ranks.first and folder.is_dir() else None)
        if found is None:
            return False
        if self.ranks.mesh is None:
            self.load(torch.load(found, map_location=self.device, weights_only=True))
        else:
            self.load(torch.load(found, map_location="cpu", mmap=True, weights_only=True))
        return True

    def result_module(self) -> nn.Module:
        """The averaged first player, or itself."""
        if self.averaged is None:
            return next(iter(self.players.values()))
        module: nn.Module = self.averaged.module
        return module


def save_checkpoint(state: Mapping[str, Any], folder: Path) -> Path:
    """Write `step_<n>.pt`: complete or absent, whatever happens meanwhile; older ones go after it is on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{state['step']:09d}.pt"
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in folder.glob("step_*.pt"):
        if old != path:
            old.unlink()
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; remains of an interrupted write are removed."""
    for partial in folder.glob("step_*.partial"):
        partial.unlink()
    return max(folder.glob("step_*.pt"), default=None)


@contextmanager
def _term_flag() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, while inside (only in the main thread; elsewhere it is never set)."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def train_step(
    run: Run, trainee: Trainee, batches: Callable[[int, int], Any], optim: Optimisation, seed: int, bf16: bool
) -> dict[str, Tensor]:
    """One optimiser step of every player; returns what is to be logged."""
    logs: dict[str, Tensor] = {}
    parts = [batches(run.step, part) for part in range(optim.accumulate)]
    for number, (name, module) in enumerate(run.players.items()):
        run.optimisers[name].zero_grad(set_to_none=True)
        for part, batch in enumerate(parts):
            draw = step_seed(seed, run.step, part * len(run.players) + number)
            torch.manual_seed(draw)
            generator = torch.Generator().manual_seed(draw)
            with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
                loss, extra = trainee.loss(name, batch, run.step, generator)
            (run.ranks.scaled(loss) / optim.accumulate).backward()
            for key, value in {f"{name}/loss": loss, **extra}.items():
                logs[key] = logs.get(key, torch.zeros(())) + value.detach().float().cpu() / optim.accumulate
        run.ranks.average_gradients(module)
        norm = nn.utils.clip_grad_norm_(module.parameters(), optim.clip)
        logs[f"{name}/grad_norm"] = whole(norm).detach().cpu()
        run.optimisers[name].step()
        run.schedules[name].step()
    run.step += 1
    if run.averaged is not None:
        run.averaged.update_parameters(next(iter(run.players.values())))
    return run.ranks.total(logs, [f"{name}/grad_norm" for name in run.players])


def fit(
    trainee: Trainee, batches: Callable[[int, int], Any], optim: Optimisation, *, seed: int, work: Path, name: str,
    on_log: OnLog, validate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
) -> FitResult:  # fmt: skip
    """Train until `optim.steps`, going on from the newest checkpoint in `work`.

    Args:
        trainee: what is trained.
        batches: (step, part) -> batch; a pure function, so that a resumed run sees the same data.
        seed: the training's seed; see `step_seed`.
        work: folder of the checkpoints (.work/<stage>/<key>); the caller removes it when the result is in place.
        name: shown by the progress bar.
        on_log: gets (step, scalars) every `log_every` steps and after each validation.
        validate: (averaged module, step) -> scalars, in eval mode without gradients.

    Raises:
        FloatingPointError: a loss is not finite; names the step.
        Interrupted: SIGTERM came; a checkpoint was written, the same command goes on from it.
    """
    run = Run(trainee, optim)
    first = run.ranks.first
    on_log = on_log if first else _say_nothing
    if run.resume(work) and first:
        print(f"{name}: resume at step {run.step} of {optim.steps}", flush=True)
    started, clock = run.step, time.perf_counter()
    bf16 = use_bf16(optim.precision, run.device)
    hidden = None if first else True  # None: shown on a terminal only
    with _term_flag() as stop, tqdm(total=optim.steps, initial=run.step, desc=name, unit="step", disable=hidden) as bar:
        while run.step < optim.steps:
            logs = train_step(run, trainee, batches, optim, seed, bf16)
            last = run.step == optim.steps
            if run.step % optim.log_every == 0 or last:
                rate = next(iter(run.optimisers.values())).param_groups[0]["lr"]
                _log(logs, run.step, name, rate, on_log, bar)
            if validate is not None and (last or (optim.validate_every and run.step % optim.validate_every == 0)):
                _validate(validate, run, on_log)
            stopping = run.ranks.any_of(stop.is_set())
            if last or run.step % optim.checkpoint_every == 0 or stopping:
                run.save(work)
            bar.update()
            if stopping and not last:
                raise Interrupted(143)
        if started == optim.steps and validate is not None:  # killed after the last checkpoint: callers want its values
            _validate(validate, run, on_log)
    return FitResult(run.result_module().eval(), started, run.step, time.perf_counter() - clock)


def _say_nothing(_step: int, _values: Mapping[str, float]) -> None:
    """`on_log` of all processes but the first."""


def _log(logs: Mapping[str, Tensor], step: int, name: str, rate: float, on_log: OnLog, bar: Any) -> None:
    values = {key: float(value) for key, value in logs.items()}
    bad = [key for key, value in values.items() if not math.isfinite(value)]
    if bad:
        raise FloatingPointError(
            f"{name}: {bad[0]} is {values[bad[0]]} at step {step}; lower lr or clip in params.yaml"
        )
    first = next(iter(values))
    bar.set_postfix_str(f"{first} {values[first]:.4f}")
    on_log(step, values | {"lr": rate})


def _validate(validate: Callable[[nn.Module, int], Mapping[str, float]], run: Run, on_log: OnLog) -> None:
    module = run.result_module()
    was_training = module.training
    module.eval()
    with torch.no_grad():
        on_log(run.step, {f"val/{key}": value for key, value in validate(module, run.step).items()})
    module.train(was_training)
