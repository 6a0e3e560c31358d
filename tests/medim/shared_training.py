"""A network of a few hundred weights that several processes train together, and what one of two processes runs."""

import os
import signal
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from medim.distributed import ALONE, Ranks, current_ranks, gathered, process_group
from medim.training import FitResult, Interrupted, Optimisation, fit

OPTIM = Optimisation(
    steps=8, batch_size=12, accumulate=2, lr=1e-2, warmup=2, restarts=1, weight_decay=0.1, beta1=0.9, beta2=0.99,
    clip=0.5, ema=0.9, precision="fp32", checkpoint_every=100, validate_every=4, log_every=1,
)  # fmt: skip
IDS, LENGTH, BLANK = 11, 7, 10
STOP_AT = 5


class Net(nn.Module):
    """Odd sizes, so that shards are uneven, and a frozen single number, which cannot be sharded at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(IDS, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 5)) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.scale * x @ self.embed.weight.T


class Blanks:
    """Tells blanked ids; the first rows of a batch have few of them, the last ones many."""

    def __init__(self, ranks: Ranks = ALONE, seed: int = 1) -> None:
        torch.manual_seed(seed)
        self.net, self.ranks = Net(), ranks

    def players(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def blocks(self, module: nn.Module) -> list[nn.Module]:
        return list(module.blocks)

    def loss(self, _player, batch, _step, generator):
        share = torch.linspace(0.1, 1, len(batch))[:, None]
        blank = torch.rand(batch.shape, generator=generator) < share
        blank[:, 0] = True
        rows = self.ranks.rows(len(batch))
        logits = self.net(torch.where(blank, BLANK, batch)[rows])
        nats = F.cross_entropy(logits[blank[rows]], batch[rows][blank[rows]], reduction="sum")
        return nats / blank.sum(), {"blanks": blank[rows].sum().float()}


def batches(step: int, part: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step * 10 + part)
    return torch.randint(0, BLANK, (OPTIM.batch_size // OPTIM.accumulate, LENGTH), generator=generator)


def stopping(step: int, part: int) -> torch.Tensor:
    """The same; the last process is told to stop before the end."""
    if step == STOP_AT - 1 and part == 0 and current_ranks().rank == current_ranks().world - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return batches(step, part)


def validate(module: nn.Module, step: int) -> dict[str, float]:
    return {"loss": float(F.cross_entropy(module(batches(step, 7)).flatten(0, 1), batches(step, 7).flatten()))}


def train(work: Path, data=batches) -> tuple[FitResult, list[dict[str, float]]]:
    """Train in this process, alone or with the others of the group; every log line."""
    lines: list[dict[str, float]] = []
    trainee = Blanks(current_ranks(), seed=1 + current_ranks().rank)  # all must begin with the first one's weights
    result = fit(
        trainee, data, OPTIM, seed=3, work=work, name="blanks",
        on_log=lambda step, values: lines.append({"step": step, **values}), validate=validate,
    )  # fmt: skip
    return result, lines


def main(folder: Path, parallel: str) -> None:
    """Three trainings: a whole one, one that is stopped and goes on, one that goes on from one process's checkpoint."""
    seen = {}
    with process_group(torch.device("cpu"), parallel):
        result, lines = train(folder / "whole")
        seen["whole"] = lines, gathered(result.averaged.state_dict())
        try:
            train(folder / "stopped", stopping)
        except Interrupted as stopped:
            seen["code"] = stopped.code
        result, lines = train(folder / "stopped")
        seen["resumed"] = result.started_at, lines, gathered(result.averaged.state_dict())
        result, lines = train(folder / "alone")
        seen["from_one"] = result.started_at, lines, gathered(result.averaged.state_dict())
        rank = current_ranks().rank
    torch.save(seen, folder / f"seen_{rank}.pt")
