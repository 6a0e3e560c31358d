"""What every stage does around its one call into medim: work folder, lock, curves, costs, placing of results.

    with stage_run("train_medim", "medim", section=params, inputs=[...], outputs=[world.model("medim")]) as run:
        train_medim(..., seed=run.seed, work=run.work, out=run.work / "result", on_log=run.log)
        run.place(run.work / "result", world.model("medim"))

Unfinished work lies in `.work/<stage>/<key>/`. The key is a hash of the parameters, the inputs' contents and the code,
so a stopped stage goes on where it was, and one whose settings changed never finds another's checkpoint.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from pipeline.curve_files import write_curves
from pipeline.params_checked import params_key, remember_checked, was_checked
from pipeline.params_file import PARAMS, ParamsError, Top, load_top
from pipeline.paths import RUNS, WORK, World, code_hash_file, instance_name, work_folder
from pipeline.resources import configure, die_with_parent
from pipeline.stage_clock import StageClock
from pipeline.stage_records import CURVES, OWNER, keep, lock_file, take_log

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESERVED = ("step", "time")  # keys of a log line that are no scalars
CLOCK = "clock.json"
PROBED = 1.0  # seconds that a starting stage waits for its lock


def command(main: Callable[[], None]) -> None:
    """Run a stage's main function; a wrong params.yaml or a missing file ends it with one line and exit code 1.

    All sections are read first, not the stage's alone: a wrong value in the last one does not wait for the trainings
    before it. A forked process does that, so that the stage's own loads no code that its hash does not hold; where
    nothing that it would read has changed since it last found all right, it is not asked again.
    """
    key = params_key()
    if not was_checked(key):
        from pipeline.params import check_sections  # pydantic

        check = multiprocessing.get_context("fork").Process(target=_run, args=(check_sections,))
        check.start()
        check.join()
        if check.exitcode:
            sys.exit(1)  # it has said why
        if params_key() == key:  # else it was edited while it was checked
            remember_checked(key)
    _run(main)


def _run(function: Callable[[], None]) -> None:
    try:
        function()
    except ParamsError as error:
        sys.exit(str(error))
    except FileNotFoundError as error:
        if error.errno is not None:  # not one of ours, which say what to do
            raise
        sys.exit(str(error))


class StageRun:
    """One run of a stage. `work` is its private folder, kept until the stage has finished."""

    def __init__(self, stage: str, item: str | None, world: World, top: Top, work: Path) -> None:
        self.name = instance_name(stage, item)
        self.world, self.seed, self.threads, self.work = world, top.seed, top.threads, work
        self._log_path = world.logs(self.name)
        self._logged: set[str] = set()
        self._costs: dict[str, int | None] = {"examples": None, "parameters": None}

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append a line to logs/<instance>.jsonl: `{"step": ..., "time": unix seconds, <name>: value, ...}`.

        A value that is not finite is written as null. When a resumed process logs a name for the first time, lines that
        hold this name at this step or later are removed first: the killed process wrote them after its checkpoint.

        Raises:
            ValueError: a scalar is called step or time.
        """
        clash = [name for name in RESERVED if name in scalars]
        if clash:
            raise ValueError(f"{self.name}: a scalar may not be called {clash[0]!r}")
        new = set(scalars) - self._logged
        if new:
            self._drop_lines(lambda line: line["step"] >= step and not new.isdisjoint(line))
            self._logged |= new
        values = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": int(step), "time": round(time.time(), 3), **values}) + "\n")

    def resume_log(self, step: int) -> None:
        """Remove all lines after `step`, the step of the checkpoint that is gone on from."""
        self._drop_lines(lambda line: line["step"] > step)

    def _drop_lines(self, condition: Any) -> None:
        if not self._log_path.is_file():
            return
        text = self._log_path.read_text(encoding="utf-8")
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]  # a kill may leave half a line
        kept = "".join(line for line in whole if not condition(json.loads(line)))
        if kept != text:
            partial = self._log_path.with_name(f"{self._log_path.name}.partial")
            partial.write_text(kept, encoding="utf-8")
            os.replace(partial, self._log_path)

    def cost(
        self, *, examples: int | None = None, parameters: int | None = None, pretraining_examples: int | None = None
    ) -> None:
        """Say how many examples the stage worked on, how many parameters its network has, and how many examples its
        prior was trained on, which only the costs of a stage that says so hold."""
        given = {"examples": examples, "parameters": parameters, "pretraining_examples": pretraining_examples}
        self._costs |= {name: int(value) for name, value in given.items() if value is not None}

    def place(self, src: Path, dst: Path) -> None:
        """Move a finished file or folder into place in one rename; what was there before is removed. A model's folder
        gets the curves of its training first, see `pipeline.curve_files`.

        Raises:
            FileNotFoundError: `src` is missing.
        """
        if not src.exists():
            raise FileNotFoundError(f"{self.name}: {src} is missing and cannot become {dst}")
        if src.is_dir() and dst.parent == self.world.model(dst.name).parent:
            write_curves(self._log_path, src)
        dst.parent.mkdir(parents=True, exist_ok=True)
        if src.stat().st_dev != dst.parent.stat().st_dev:
            src = _copy_beside(src, dst)
        try:
            src.rename(dst)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
                raise
            _remove(dst)
            src.rename(dst)

    def written_costs(self, seconds: float, peak_bytes: int) -> dict[str, Any]:
        """The fields of costs/<instance>.json that publishing and MLflow show."""
        return {"instance": self.name, "seconds": round(seconds, 3), "peak_bytes": peak_bytes, **self._costs}


def _copy_beside(src: Path, dst: Path) -> Path:
    """A copy of `src` on the disk of `dst`, so that the rename stays one step."""
    partial = dst.with_name(f".{dst.name}.partial")
    _remove(partial)
    if src.is_dir():
        shutil.copytree(src, partial)
    else:
        shutil.copy2(src, partial)
    _remove(src)
    return partial


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes, or of the names and bytes of all files in a folder.

    Raises:
        FileNotFoundError: names the path and the command that makes it.
    """
    if path.is_dir():
        parts = [f"{f.relative_to(path).as_posix()} {content_hash(f)}" for f in sorted(path.rglob("*")) if f.is_file()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `dvc repro` (it makes what a stage needs first)")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(
    instance: str, section: Mapping[str, Any], top: Top, inputs: Sequence[Path], use_code: bool
) -> dict[str, Any]:
    """Everything that a stage's result depends on."""
    code = code_hash_file(instance)
    if use_code and not code.is_file():
        raise FileNotFoundError(f"{code} is missing: run `dvc repro hash_code` (or `python -m stages.hash_code`)")
    return {
        "params": dict(section),
        "seed": top.seed,
        "threads": top.threads,
        "inputs": {path.as_posix(): content_hash(path) for path in inputs},
        "code": code.read_text(encoding="utf-8").split("\n", 1)[0] if use_code else None,
    }


def _plain(section: Mapping[str, Any] | DataclassInstance) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return (
            dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)
        )

    return dict(json.loads(json.dumps(section, default=plain)))


@contextmanager
def _only_one(instance: str, world: World) -> Iterator[None]:
    """Hold the lock of this world's instance.

    Raises:
        SystemExit: another process holds it; says which.
    """
    path = lock_file(world, instance)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _locked_within(file, PROBED):
            file.seek(0)
            other = file.read().strip() or "?"
            raise SystemExit(f"{instance}: process {other} is at it already (lock {path}); wait for it or stop it")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _locked_within(file: IO[str], seconds: float) -> bool:
    """Whether the file could be locked; one that looks whether a stage runs holds it for a moment."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        else:
            return True


@contextmanager
def _term_is_exit() -> Iterator[None]:
    """SIGTERM ends the stage through its `finally` blocks, exit code 143; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stage_run(
    stage: str,
    instance: str | None = None,
    *,
    section: Mapping[str, Any] | DataclassInstance,
    inputs: Sequence[Path],
    outputs: Sequence[Path],
    use_torch: bool = True,
    use_code: bool = True,
    live: bool = True,
    params: Path = PARAMS,
) -> Iterator[StageRun]:
    """Run the body as a stage; world, seed and threads come from params.yaml.

    Args:
        stage: name of the stage.
        instance: what stands behind DVC's @ (`medim` of `train_medim@medim`); None where the stage has no matrix.
        section: the parameters it depends on, as read from params.yaml.
        inputs: files and folders that it reads; their contents are part of the key.
        outputs: files and folders that must be there at the end.
        use_torch: see `pipeline.resources.configure`.
        use_code: False only for stages that no code hash is written for.
        live: send curves to MLflow while the stage runs.
        params: the parameter file.

    Raises:
        FileNotFoundError: an input or the code hash is missing, or the body left an output unwritten.
        SystemExit: another process runs this instance; or SIGTERM came (143): the same command goes on from there.
    """
    if os.environ.get("DVC_STAGE"):
        die_with_parent(os.getppid())
    top = load_top(params)
    configure(top.threads, top.seed, use_torch)
    world, name = World(RUNS / top.world), instance_name(stage, instance)
    with _only_one(name, world), _term_is_exit():
        identity = _identity(name, _plain(section), top, inputs, use_code)
        work = _open_work(stage, name, world, identity)
        run = StageRun(stage, instance, world, top, work)
        with StageClock(work / CLOCK) as clock:
            print(
                f"{name}: {_places(inputs)} -> {_places(outputs)} (world {world.name}, {top.threads} threads)",
                flush=True,
            )
            sender, state = _live_sender(world, name) if live else None, "FINISHED"
            try:
                yield run
                _finish(run, clock, identity, outputs)
            except BaseException as error:
                state = "FAILED" if isinstance(error, Exception) else "KILLED"
                _say_stopped(name, clock, work)
                raise
            finally:
                if sender is not None:
                    sender.stop(state)
        _clear(stage, name, world, work)
        print(f"{name}: done in {clock.seconds() / 60:.1f} min -> {_places(outputs)}", flush=True)


def _say_stopped(name: str, clock: StageClock, work: Path) -> None:
    left = [path for path in work.glob("*") if path.name not in (OWNER, CLOCK, CURVES)]
    advice = f"; the same command goes on from {work}" if left else ""
    print(f"{name}: stopped after {clock.seconds() / 60:.1f} min{advice}", file=sys.stderr, flush=True)


def _live_sender(world: World, name: str) -> Any:
    from pipeline.tracking_live import LiveSender

    return LiveSender(world, name).start()


def _places(paths: Sequence[Path]) -> str:
    texts = [path.as_posix() for path in paths[:3]] + ([f"{len(paths) - 3} more"] if len(paths) > 3 else [])
    return ", ".join(texts) or "nothing"


def _open_work(stage: str, name: str, world: World, identity: Mapping[str, Any]) -> Path:
    """The work folder of this identity, with its own curves in logs/: none at a first attempt."""
    canonical = json.dumps({"world": world.name, "instance": name, **identity}, sort_keys=True)
    work = work_folder(stage, hashlib.sha256(canonical.encode()).hexdigest()[:16])
    world.costs(name).unlink(missing_ok=True)  # costs are those of a finished run
    take_log(world, name, work)
    if not (work / OWNER).is_file():
        work.mkdir(parents=True, exist_ok=True)
        _write_json(work / OWNER, {"world": world.name, "instance": name, **identity})
    return work


def _finish(run: StageRun, clock: StageClock, identity: Mapping[str, Any], outputs: Sequence[Path]) -> None:
    missing = [path.as_posix() for path in outputs if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{run.name}: the stage ended without writing {', '.join(missing)}")
    costs = run.written_costs(clock.seconds(), clock.peak_bytes()) | dict(identity)
    _write_json(run.world.costs(run.name), costs)
    keep(run.world, run.name, run.work, outputs)


def _clear(stage: str, name: str, world: World, work: Path) -> None:
    """Remove this instance's work folders, old keys too; those of other worlds and instances stay."""
    shutil.rmtree(work)
    for owner in (WORK / stage).glob(f"*/{OWNER}"):
        data = json.loads(owner.read_text(encoding="utf-8"))
        if (data["world"], data["instance"]) == (world.name, name):
            shutil.rmtree(owner.parent)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)
