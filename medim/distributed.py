"""Training in several processes that torchrun started: with whole copies of the weights, or with FSDP2's shards.

Each part of a step's batch is shared. Every process draws the whole part (pairs, states, times, masks: on the CPU, from
one seed), and its network computes every `world`-th row. So the counts that a loss is divided by are those of the whole
part, and a process whose rows have few masked tokens weighs as little as it should (a mean of the processes' own means
would not, and nothing would show it). Losses and weights are those of one process up to the order of sums, for every
number of processes; a checkpoint holds whole tensors, so any number goes on from it.

One rule for trainees (`medim.training.SharedTrainee`): the loss and the scalars that a process returns are its shares,
and the shares of all processes sum to the value of the whole part.

FSDP2 is torch.distributed.fsdp.fully_shard (https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")

PARALLEL = ("copies", "fsdp")  # every process has all weights, or a shard of them
TIMEOUT = timedelta(hours=1)  # of one collective: all wait while the first process writes a checkpoint
BUCKET = 1 << 24  # numbers that one all-reduce of gradients sums


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    world: int  # processes
    mesh: Any  # DeviceMesh of FSDP2's shards; None: every process has all weights

    @property
    def first(self) -> bool:
        """Whether this process writes, logs and shows progress for all."""
        return self.rank == 0

    def rows(self, num: int) -> slice:
        """Which of a part's rows this process computes: every `world`-th, since neighbours are of one dataset.

        Raises:
            ValueError: fewer rows than processes.
        """
        if num < self.world:
            raise ValueError(
                f"{self.world} processes cannot share a part of {num} rows: raise optim.batch_size, lower "
                f"optim.accumulate (params.yaml) or start fewer processes"
            )
        return slice(self.rank, None, self.world) if self.world > 1 else slice(None)

    def scaled(self, loss: Tensor) -> Tensor:
        """The share of a loss times `world`: gradients are averaged over the processes, and their sum is wanted."""
        return loss if self.world == 1 else loss * self.world

    def total(self, shares: dict[str, Tensor], whole: Collection[str]) -> dict[str, Tensor]:
        """Sums over the processes of scalars on the CPU, but for those named in `whole`; all have the same names."""
        names = [name for name in shares if name not in whole]
        if self.world == 1 or not names:
            return shares
        values = torch.stack([shares[name].double() for name in names])
        dist.all_reduce(values)
        return shares | dict(zip(names, values.float().unbind(), strict=True))

    def any_of(self, flag: bool) -> bool:
        """Whether it is true in some process."""
        if self.world == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def agreed(self, value: Value) -> Value:
        """The first process's value."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def share(self, module: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Give every process the first one's weights, and with a mesh cut them into shards.

        To be called before an optimiser is built: one that holds the whole tensors would move nothing, without an
        error.

        Args:
            module: its forward must be what computes with its parameters.
            blocks: modules in it whose weights are gathered one block at a time; the rest is gathered at once.

        Raises:
            ValueError: a trained parameter cannot be sharded.
        """
        if self.world == 1:
            return
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                value = tensor.detach().contiguous()
                dist.broadcast(value, 0)
                tensor.copy_(value)
        if self.mesh is not None:
            _shard(module, blocks, self.mesh)

    def average_gradients(self, module: nn.Module) -> None:
        """Replace the gradients by their means over the processes, where FSDP2 has not done so.

        A parameter without a gradient in some processes counts as zero there; without one in all it keeps none.
        """
        parameters = [p for p in module.parameters() if p.requires_grad]
        if self.world == 1 or self.mesh is not None or not parameters:
            return
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        gradients: list[Tensor] = []
        for parameter, is_used in zip(parameters, used.tolist(), strict=True):
            if is_used:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            parts = flat.div_(self.world).split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


ALONE = Ranks(0, 1, None)
_current = ALONE


def processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def current_ranks() -> Ranks:
    """This process in the group that `process_group` has opened; `ALONE` outside."""
    return _current


@contextmanager
def process_group(device: torch.device, parallel: str) -> Iterator[torch.device]:
    """Open the group of all processes that torchrun started, one for each GPU; without torchrun there is none.

    After an error the group is left to the end of the process: closing it would wait for the others.

    Args:
        device: as one process would use it.
        parallel: `copies` | `fsdp`.

    Yields:
        The device of this process.

    Raises:
        ValueError: unknown `parallel`.
    """
    global _current
    if parallel not in PARALLEL:
        raise ValueError(f"--parallel must be {' or '.join(PARALLEL)}, got {parallel!r}")
    if processes() == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    mesh = None
    if parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("shards",))
    _current = Ranks(dist.get_rank(), dist.get_world_size(), mesh)
    yield device
    dist.barrier()
    dist.destroy_process_group()
    _current = ALONE


def _shard(module: nn.Module, blocks: Sequence[nn.Module], mesh: Any) -> None:
    """FSDP2 on the blocks and on what is around them.

    Resharding after the forward, of the outermost module too, so that between steps `parameters()` are the shards also
    where no backward followed (validation). Computation stays what it is in one process: weights are gathered in
    float32 and autocast as before, not by a MixedPrecisionPolicy. Frozen single numbers are left whole.
    """
    from torch.distributed.fsdp import fully_shard

    single = {name: parameter for name, parameter in module.named_parameters() if not parameter.dim()}
    trained = [name for name, parameter in single.items() if parameter.requires_grad]
    if trained:
        raise ValueError(f"FSDP2 cannot shard {trained[0]}, a single number: start with `--parallel copies`")
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 takes no other layout; those of towers are channels_last
    for part in (*blocks, module):
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=set(single.values()))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, up to `BUCKET` numbers together."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def is_sharded(value: object) -> bool:
    """Whether it is a DTensor; told by its methods, since the import takes a second that most trainings do not need."""
    return hasattr(value, "full_tensor")


def local(value: Any) -> Any:
    """This process's shard of a tensor, sharing its memory; a whole tensor itself. Without gradients."""
    if not is_sharded(value):
        return value
    with torch.no_grad():
        return value.to_local()


def whole(value: Any) -> Any:
    """The whole of a sharded tensor, in every process; a collective."""
    return value.full_tensor() if is_sharded(value) else value


def gathered(value: Any) -> Any:
    """Nested dicts and lists with whole tensors on the first process's CPU in place of shards; None in the others.

    A collective where there are shards; without any the values are the same objects.
    """
    if isinstance(value, Mapping):
        return {key: gathered(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([gathered(item) for item in value])
    if not is_sharded(value):
        return value
    full = whole(value.detach())
    return full.cpu() if current_ranks().first else None


def shard_as(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, sharded as `like`; the value itself where `like` is whole.

    A tensor of another shape than `like` (an optimiser's count of steps) stays whole too.
    """
    if not is_sharded(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    cut = distribute_tensor(value.detach(), like.device_mesh, like.placements, src_data_rank=None)
    shard = torch.empty_like(like.detach())
    local(shard).copy_(local(cut))  # a copy: `cut` may be a view that keeps all of `value` in memory
    return shard


def shard_optimiser_state(state: Mapping[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """The state dict of an optimiser with its tensors sharded as the parameters are, in the optimiser's order."""
    moments = {
        index: {name: shard_as(value, parameters[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}
