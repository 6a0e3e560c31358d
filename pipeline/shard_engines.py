"""Who works on a list of shards: this process, other processes of this machine, or actors of a Ray cluster.

An engine hands out shards and yields (shard, outcome) as they end, in any order. A worker that dies takes one shard
with it at most, by name. Ray Core actors over the list, not Ray Data: that reorders rows and names files by chance, so
its output is never the same bytes twice.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.resources import configure, die_with_parent, gpus_seen
from pipeline.shard_work import Function, Outcome, Shard, Work, attempt, imported

ENGINES = ("local", "ray")
VARIABLES = ("MEDIM_ENGINE", "MEDIM_WORKERS", "MEDIM_WORKER_GPUS", "MEDIM_SHARD_ROWS")
RAY_SETTINGS = {  # before Ray is imported; what the user has set stays
    "RAY_USAGE_STATS_ENABLED": "0",  # reports to nobody
    "RAY_worker_niceness": "0",  # its default, 15, starves workers on a shared machine
    "RAY_AUTH_MODE": "token",  # joining a cluster of another mode fails without naming it
}
RAY_STORE = 200 * 2**20  # bytes of Ray's object store on one machine: shards are files, nothing large passes through it

Ended = Iterator[tuple[Shard, Outcome]]


@dataclass(frozen=True)
class Engine:
    """Who works. It changes no result beyond the last bits of sums, so it stands in the environment (`engine_of`)."""

    name: str  # local | ray
    workers: int
    worker_gpus: int  # GPUs of one worker; 0: a local worker sees those that this process sees
    rows: int  # rows of a shard where a file is cut into several; 0: a file is one shard
    asked: bool = field(default=True, compare=False)  # by the environment; else the number of workers is the usual one

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: names the variable, its value and what is possible.
        """
        if self.name not in ENGINES:
            raise ValueError(f"MEDIM_ENGINE must be {' or '.join(ENGINES)}, got {self.name!r}")
        numbers = (self.workers, self.worker_gpus, self.rows)
        for name, value, least in zip(VARIABLES[1:], numbers, (1, 0, 0), strict=True):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")

    @property
    def in_process(self) -> bool:
        """Whether this process does all the work itself."""
        return self.name == "local" and self.workers == 1

    @property
    def splits(self) -> bool:
        """Whether there is anything to hand out: several workers, or files in several shards."""
        return not self.in_process or self.rows > 0

    def hands_out(self, slow: bool) -> bool:
        """Whether workers get the shards of a stage: usual ones where it is slow only, since each loads a model."""
        return not self.in_process and (self.asked or slow)

    def worker_threads(self, threads: int, shards: int) -> int:
        """Threads of one worker of a stage that may use so many and has so many shards: one machine's are shared."""
        if self.name != "local" or self.worker_gpus:
            return threads
        return max(1, threads // max(1, min(self.workers, shards)))


def engine_of(environment: Mapping[str, str], workers: int = 1) -> Engine:
    """MEDIM_ENGINE (local), MEDIM_WORKERS, MEDIM_WORKER_GPUS (0), MEDIM_SHARD_ROWS (1024); in brackets if unset.

    One local worker, who gains nothing from shards of a file, has 0 rows.

    Args:
        environment: variables.
        workers: MEDIM_WORKERS where it is unset.

    Raises:
        ValueError: see `Engine`; or a value that is no whole number.
    """
    name = environment.get("MEDIM_ENGINE", "local")
    alone = name == "local" and environment.get("MEDIM_WORKERS", str(workers)) == "1"
    numbers = []
    for variable, usual in zip(VARIABLES[1:], (str(workers), "0", "0" if alone else "1024"), strict=True):
        text = environment.get(variable, usual)
        if not text.lstrip("-").isdecimal():
            raise ValueError(f"{variable} must be a whole number, got {text!r}")
        numbers.append(int(text))
    asked = name != "local" or "MEDIM_WORKERS" in environment
    return Engine(name, numbers[0], numbers[1], numbers[2], asked)


def run(engine: Engine, work: Work, todo: Sequence[Shard]) -> Ended:
    """Every shard once, each with its outcome."""
    if engine.in_process:
        return _in_this_process(engine, work, todo)
    return (_local if engine.name == "local" else _ray)(engine, work, todo)


def _function(work: Work) -> Function | Outcome:
    """What works on shards, or an outcome that says why there is none."""
    try:
        return imported(work.make)(**work.settings)
    except Exception:  # noqa: BLE001 - reported by whoever asked for the shards
        return Outcome(None, traceback.format_exc(), set_up=False)


def _outcome(function: Function | Outcome, shard: Shard, work: Work) -> Outcome:
    return function if isinstance(function, Outcome) else attempt(function, shard, work.receipts)


def _in_this_process(engine: Engine, work: Work, todo: Sequence[Shard]) -> Ended:
    function = no_gpu(engine.worker_gpus, work) or _function(work)
    for shard in todo:
        yield shard, _outcome(function, shard, work)


# What a process of the pool keeps between shards: set by `_begin`, once.
_worker: dict[str, Any] = {}


def _begin(work: Work, parent: int, turns: Any, gpus: Sequence[str]) -> None:
    """Set up a process of the pool; it ends with the process that started it, however that ends."""
    die_with_parent(parent)
    if gpus:
        with turns.get_lock():
            turn = turns.value
            turns.value += 1
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[turn % len(gpus)]
    configure(work.threads, work.seed, work.use_torch)
    _worker["work"], _worker["function"] = work, no_gpu(len(gpus[0].split(",")) if gpus else 0, work) or _function(work)


def no_gpu(wanted: int, work: Work) -> Outcome | None:
    """Why this worker, which was promised so many GPUs, cannot work; None: torch sees them, or none was promised.

    Without this the CPU would do the work, hours later than anybody expects.
    """
    if not (wanted and work.use_torch):
        return None
    seen = gpus_seen()
    if seen >= wanted:
        return None
    visible = f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')}"
    said = f"MEDIM_WORKER_GPUS asks for {wanted} GPUs, torch sees {seen} on {platform.node()} ({visible})"
    return Outcome(None, f"{said}: set it to 0, or see there what `nvidia-smi` says", set_up=False)


def _in_pool(shard: Shard) -> Outcome:
    return _outcome(_worker["function"], shard, _worker["work"])


def visible_gpus(engine: Engine, visible: str | None) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker in turn; none where workers ask for no GPU.

    Args:
        visible: CUDA_VISIBLE_DEVICES of this process; None: all are visible, and they are numbered from 0.

    Raises:
        ValueError: more GPUs are asked for than are visible.
    """
    if not engine.worker_gpus:
        return []
    wanted = engine.workers * engine.worker_gpus
    numbered = ",".join(str(number) for number in range(wanted))
    names = [name for name in (numbered if visible is None else visible).split(",") if name]
    if len(names) < wanted:
        raise ValueError(
            f"{engine.workers} workers of {engine.worker_gpus} GPUs need {wanted}, CUDA_VISIBLE_DEVICES names "
            f"{len(names)}: lower MEDIM_WORKERS or MEDIM_WORKER_GPUS"
        )
    each = engine.worker_gpus
    return [",".join(names[first : first + each]) for first in range(0, wanted, each)]


@contextmanager
def _pool(work: Work, workers: int, gpus: Sequence[str]) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when the body is left by an exception, even in the middle of their shards."""
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads and CUDA's state
    pool = ProcessPoolExecutor(workers, context, _begin, (work, os.getpid(), context.Value("i", 0), gpus))
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _local(engine: Engine, work: Work, todo: Sequence[Shard]) -> Ended:
    """A pool of processes. When one dies the pool loses all that are in flight: these are done again, one at a time, so
    that the shard which kills its worker is known; it is the one that kills it alone."""
    gpus = visible_gpus(engine, os.environ.get("CUDA_VISIBLE_DEVICES"))
    left, suspects = list(todo), list[Shard]()
    while left or suspects:
        alone = bool(suspects)
        workers, queue = (1, [suspects.pop()]) if alone else (min(engine.workers, len(left)), left)
        busy: dict[Future[Outcome], Shard] = {}
        try:
            with _pool(work, workers, gpus) as pool:
                while queue or busy:
                    while queue and len(busy) <= workers:  # one waits, so that no worker does
                        busy[pool.submit(_in_pool, queue[0])] = queue[0]
                        queue.pop(0)
                    for future in wait(busy, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        yield busy.pop(future), outcome
        except BrokenProcessPool as error:
            lost = [*busy.values(), *(queue if alone else [])]
            if alone:
                yield from ((shard, Outcome(None, f"the worker died: {error}")) for shard in lost)
            else:
                suspects = lost


@contextmanager
def ray_cluster(workers: int) -> Iterator[Any]:
    """Ray, joined to the cluster that RAY_ADDRESS names, else started on this machine and ended with the body.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "MEDIM_ENGINE=ray needs Ray: `MEDIM_EXTRAS=dev,medical,cluster ./setup`, or MEDIM_ENGINE=local"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (*_own_path(), before)))  # inherited by Ray's workers
    try:
        if "RAY_ADDRESS" in os.environ:
            ray.init(os.environ["RAY_ADDRESS"], log_to_driver=False)
        else:  # "local" by name: a dead cluster of earlier would be joined otherwise
            ray.init(
                "local", num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=RAY_STORE
            )
    finally:
        if before is None:
            os.environ.pop("PYTHONPATH")
        else:
            os.environ["PYTHONPATH"] = before
    try:
        yield ray
    finally:
        ray.shutdown()


def _own_path() -> list[str]:
    """The folders from which this process imports, but for those that every Python of this installation knows."""
    paths = [Path.cwd(), *(Path(entry or ".").absolute() for entry in sys.path)]
    known = (sys.prefix, sys.base_prefix)
    return list(dict.fromkeys(str(path) for path in paths if not any(map(path.is_relative_to, known))))


class RayWorker:
    """An actor: makes its function once, then works on shards. `root`: this repository, on every node's file system."""

    def __init__(self, work: Work, root: str, gpus: int) -> None:
        os.chdir(root)
        configure(work.threads, work.seed, work.use_torch)
        self.work, self.function = work, no_gpu(gpus, work) or _function(work)

    def make(self, shard: Shard) -> Outcome:
        """See `attempt`."""
        return _outcome(self.function, shard, self.work)


def workers_that_fit(engine: Engine, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many of the wanted workers a cluster has room for today: Ray would wait for the others for ever.

    Args:
        engine: whose workers take one CPU each, and their GPUs, of one node.
        nodes: resources of each living node, as `ray.nodes()` names them.

    Raises:
        ValueError: not even one fits.
    """
    of_each = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    room = sum(min(cpus, gpus // engine.worker_gpus if engine.worker_gpus else cpus) for cpus, gpus in of_each)
    cluster = "the Ray cluster has " + ", ".join(f"a node of {cpus} CPUs and {gpus} GPUs" for cpus, gpus in of_each)
    if room < 1:
        raise ValueError(
            f"{cluster}, a worker needs 1 and {engine.worker_gpus}: lower MEDIM_WORKER_GPUS, or name another cluster "
            "by RAY_ADDRESS"
        )
    if room < engine.workers:
        print(f"{cluster}: room for {room} of {engine.workers} workers", flush=True)
    return min(room, engine.workers)


def _ray(engine: Engine, work: Work, todo: Sequence[Shard]) -> Ended:
    """Actors that are started again when they die; a shard that kills its actor twice is named."""
    with ray_cluster(engine.workers) as ray:
        workers = workers_that_fit(engine, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        options = {"num_cpus": 1, "num_gpus": engine.worker_gpus, "max_restarts": -1, "max_task_retries": 1}
        actor = ray.remote(**options)(RayWorker)
        idle = [actor.remote(work, str(Path.cwd()), engine.worker_gpus) for _ in range(min(workers, len(todo)))]
        left, busy = list(todo), dict[Any, tuple[Any, Shard]]()
        while left or busy:
            while left and idle:
                worker, shard = idle.pop(), left.pop(0)
                busy[worker.make.remote(shard)] = worker, shard
            reference = ray.wait(list(busy))[0][0]
            worker, shard = busy.pop(reference)
            idle.append(worker)
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as error:
                outcome = Outcome(None, f"the worker died: {error}")
            yield shard, outcome
