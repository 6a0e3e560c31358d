"""Shards: the same bytes from every engine, whole or not at all, what fails is named, what is finished stays.

Workers are killed, and so is the process that drives them. Ray's tests run where Ray is installed (extra `cluster`).
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shard_functions
import torch

from pipeline import shards
from pipeline.params_file import load_top
from pipeline.shard_engines import VARIABLES, Engine, engine_of, no_gpu, ray_cluster, visible_gpus, workers_that_fit
from pipeline.shard_work import Shard, Work, address, imported, shard_key
from pipeline.shards import ShardsFailed, cut, list_shards, map_shards, row_ranges, rows_of, stage_engine

ROOT = Path(__file__).parents[2]
FILES, ROWS = 6, 40
ALONE, TWO, RAY = Engine("local", 1, 0, 0), Engine("local", 2, 0, 0), Engine("ray", 2, 0, 0)
with_ray = pytest.param(
    RAY, marks=[pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed"), pytest.mark.slow]
)
every_engine = pytest.mark.parametrize("engine", [ALONE, TWO, with_ray], ids=["alone", "two", "ray"])
several_workers = pytest.mark.parametrize("engine", [TWO, with_ray], ids=["two", "ray"])


@pytest.fixture(scope="module")
def cluster():
    """One Ray for all of its tests: it takes longest to start."""
    with ray_cluster(RAY.workers):
        yield


@pytest.fixture(autouse=True)
def _with_cluster(request):
    """Ray runs where a test asks for it."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("engine") == RAY:
        request.getfixturevalue("cluster")


def numbers(first):
    return range(first, first + ROWS)


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(FILES):
        (folder / f"part-{n}.txt").write_text("".join(f"{number}\n" for number in numbers(100 * n)))
    return sorted(folder.iterdir())


def work(tmp_path, make=shard_functions.make_squares, **settings):
    return Work(address(make), settings, tmp_path / "receipts", threads=1, seed=0, use_torch=False)


def digests(folder):
    """Name -> hash of every file; nothing half made may lie there."""
    assert not [path for path in folder.iterdir() if path.suffix != ".txt"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def expected(sources, tmp_path):
    """What each output must be, made without any of the machinery."""
    folder = tmp_path / "expected"
    folder.mkdir()
    function = shard_functions.make_squares()
    for source in sources:
        function(source, folder / source.name)
    return digests(folder)


@every_engine
def test_every_engine_writes_the_same_bytes_and_finished_shards_are_skipped(engine, sources, expected, tmp_path):
    out = tmp_path / "out"
    first = map_shards(work(tmp_path), list_shards(sources, out, code="1"), engine, name="squares")
    first.check()
    assert (first.made, first.skipped) == (FILES, 0) and digests(out) == expected
    assert first.summaries == ({"rows": ROWS, "odd": ROWS // 2},) * FILES
    again = map_shards(work(tmp_path), list_shards(sources, out, code="1"), engine, name="squares")
    assert (again.made, again.skipped) == (0, FILES) and again.summaries == first.summaries
    (out / sources[2].name).unlink()
    mended = map_shards(work(tmp_path), list_shards(sources, out, code="1"), ALONE, name="squares")
    assert (mended.made, mended.skipped) == (1, FILES - 1) and digests(out) == expected
    other = map_shards(work(tmp_path), list_shards(sources, out, code="2"), ALONE, name="squares")
    assert other.made == FILES and digests(out) == expected


@every_engine
def test_a_poisoned_shard_is_named_with_its_file_and_the_others_finish(engine, sources, expected, tmp_path):
    out, whole = tmp_path / "out", sources[3].read_bytes()
    sources[3].write_bytes(b"1\nno number\n")
    report = map_shards(work(tmp_path), list_shards(sources, out, code="1"), engine, name="squares")
    assert [failure.shard.source for failure in report.failures] == [sources[3]]
    assert report.made == FILES - 1 and report.summaries[3] is None
    found = digests(out)
    assert found == {name: value for name, value in expected.items() if name != sources[3].name}
    with pytest.raises(
        ShardsFailed, match=rf"1 of {FILES} shards failed[\s\S]*{sources[3].name}: ValueError: .*no number"
    ):
        report.check()
    sources[3].write_bytes(whole)
    mended = map_shards(work(tmp_path), list_shards(sources, out, code="1"), ALONE, name="squares")
    assert (mended.made, mended.skipped) == (1, FILES - 1) and digests(out) == expected


@several_workers
def test_a_shard_that_kills_its_worker_is_named_and_the_others_finish(engine, sources, expected, tmp_path):
    sources[1].write_text("1\n-1\n")
    report = map_shards(work(tmp_path), list_shards(sources, tmp_path / "out", code="1"), engine, name="squares")
    assert [failure.shard.source for failure in report.failures] == [sources[1]]
    assert "the worker died" in str(report.failures[0])
    found = digests(tmp_path / "out")
    assert found == {name: value for name, value in expected.items() if name != sources[1].name}


@several_workers
def test_a_worker_that_is_killed_costs_nothing_but_time(engine, sources, expected, tmp_path):
    marker = {"marker": str(tmp_path / "killed")}
    shards = [
        Shard(shard.source, shard.target, shard.key, marker if shard.source == sources[4] else {})
        for shard in list_shards(sources, tmp_path / "out", code="1")
    ]
    report = map_shards(work(tmp_path), shards, engine, name="squares")
    report.check()
    assert (tmp_path / "killed").exists() and report.made == FILES and digests(tmp_path / "out") == expected


DRIVER = """
import sys
from pathlib import Path
import shard_functions
from pipeline.shard_engines import Engine
from pipeline.shard_work import Work, address
from pipeline.shards import list_shards, map_shards
folder = Path(sys.argv[1])
work = Work(address(shard_functions.make_squares), {"pause": 0.3, "pids": str(folder / "pids")},
            folder / "receipts", threads=1, seed=0, use_torch=False)
shards = list_shards(sorted((folder / "in").glob("*")), folder / "out", code="1")
map_shards(work, shards, Engine("local", 2, 0, 0), name="squares")
"""


def test_the_driver_killed_leaves_no_workers_and_the_next_run_makes_the_rest(sources, expected, tmp_path):
    pids, out = tmp_path / "pids", tmp_path / "out"
    pids.mkdir()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], env=environment)
    while len(list((tmp_path / "receipts").glob("*.json"))) < 2:
        assert driver.poll() is None
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait(10)
    until = time.monotonic() + 20
    while any(map(is_running, pids.iterdir())):
        assert time.monotonic() < until, "a worker outlived the driver"
        time.sleep(0.05)
    there = len(list((tmp_path / "receipts").glob("*.json")))
    shards = list_shards(sources, out, code="1")
    report = map_shards(work(tmp_path), shards, ALONE, name="squares")
    assert report.skipped == there and report.made == FILES - there and there < FILES
    assert digests(out) == expected


def is_running(pid_file):
    """Whether the process of this id is there, and no zombie that nobody has waited for."""
    stat = Path("/proc") / pid_file.name / "stat"
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("engine", [ALONE, TWO], ids=["alone", "two"])
def test_a_function_that_cannot_be_made_stops_the_run_and_blames_no_shard(engine, sources, tmp_path):
    broken = work(tmp_path, shard_functions.make_broken)
    with pytest.raises(RuntimeError, match=r"squares: shard_functions:make_broken cannot be set up[\s\S]*train_vqgan"):
        map_shards(broken, list_shards(sources, tmp_path / "out", code="1"), engine, name="squares")


def test_a_failed_shard_leaves_its_target_as_it_was(sources, tmp_path):
    target = tmp_path / "out" / sources[0].name
    target.parent.mkdir()
    target.write_bytes(b"before")
    report = map_shards(
        work(tmp_path, shard_functions.make_nothing), [Shard(sources[0], target, "key")], ALONE, name="nothing"
    )
    assert "returned without writing" in str(report.failures[0]) and target.read_bytes() == b"before"
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_rows_of_one_parquet_file_in_several_shards(tmp_path):
    """Row ranges are arguments: the outputs hold the rows of the whole file, in order."""
    folder, source = tmp_path / "out", tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"number": list(numbers(100))}), source)
    ranges = list(row_ranges(rows_of(source), 16))
    assert ranges == [(0, 16), (16, 32), (32, 40)]
    assert list(row_ranges(40, 0)) == [(0, 40)] and list(row_ranges(0, 16)) == [(0, 0)]
    shards = [
        Shard(source, folder / f"{start}.txt", shard_key("c", start=start), {"start": start, "stop": stop})
        for start, stop in ranges
    ]
    map_shards(work(tmp_path), shards, TWO, name="squares").check()
    found = [number for shard in shards for number in shard_functions.read_numbers(shard.target)]
    assert found == [n * n for n in numbers(100)]
    whole = map_shards(work(tmp_path), [Shard(source, folder / "whole.txt", "key")], ALONE, name="squares").check()
    assert whole == [{"rows": ROWS, "odd": ROWS // 2}]
    jobs = cut(source, folder / "all.txt", folder / "parts", 15, batch=8)  # rounded up to whole batches
    assert [(job[1].name, job[2]["start"]) for job in jobs] == [
        ("000000000-000000016.parquet", 0), ("000000016-000000032.parquet", 16), ("000000032-000000040.parquet", 32)
    ]  # fmt: skip
    assert cut(source, folder / "all.txt", folder / "parts", 0) == [
        (source, folder / "all.txt", {"start": 0, "stop": 40})
    ]


def test_two_shards_may_not_have_one_target(sources, tmp_path):
    shards = [Shard(source, tmp_path / "one.parquet", "key") for source in sources[:2]]
    with pytest.raises(ValueError, match=r"one\.parquet"):
        map_shards(work(tmp_path), shards, ALONE, name="squares")


def test_a_missing_input_is_named_before_anything_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.parquet is missing"):
        list_shards([tmp_path / "absent.parquet"], tmp_path / "out", code="1")


def test_functions_by_their_address():
    assert imported(address(shard_functions.make_squares)) is shard_functions.make_squares
    with pytest.raises(ValueError, match="a worker cannot import"):
        address(lambda: None)
    with pytest.raises(ValueError, match="write module:function"):
        imported("pipeline.shards:absent")


def test_the_engine_stands_in_the_environment():
    assert engine_of({}) == ALONE and not ALONE.splits and TWO.splits
    assert engine_of({"MEDIM_WORKERS": "2"}) == Engine("local", 2, 0, 1024)
    assert engine_of({}, 2) == Engine("local", 2, 0, 1024) and engine_of({"MEDIM_WORKERS": "1"}, 2) == ALONE
    names = {"MEDIM_ENGINE": "ray", "MEDIM_WORKERS": "8", "MEDIM_WORKER_GPUS": "1", "MEDIM_SHARD_ROWS": "1024"}
    assert engine_of(names) == Engine("ray", 8, 1, 1024)
    for wrong, message in (
        ({"MEDIM_ENGINE": "dask"}, "MEDIM_ENGINE must be local or ray, got 'dask'"),
        ({"MEDIM_WORKERS": "0"}, "MEDIM_WORKERS must be at least 1, got 0"),
        ({"MEDIM_SHARD_ROWS": "many"}, "MEDIM_SHARD_ROWS must be a whole number, got 'many'"),
    ):
        with pytest.raises(ValueError, match=message):
            engine_of(wrong)


def test_unasked_there_is_a_worker_a_thread(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shards, "load_top", lambda: replace(load_top(), threads=3))
    monkeypatch.setattr(shards, "gpus_seen", lambda: 0)
    assert stage_engine() == stage_engine(use_torch=False) == Engine("local", 3, 0, 1024)
    monkeypatch.setattr(shards, "gpus_seen", lambda: 1)
    assert stage_engine() == ALONE and stage_engine(use_torch=False).workers == 3
    monkeypatch.setenv("MEDIM_WORKER_GPUS", "1")
    assert stage_engine(use_torch=False) == Engine("local", 1, 1, 0)
    monkeypatch.delenv("MEDIM_WORKER_GPUS")
    monkeypatch.setenv("MEDIM_ENGINE", "ray")
    assert stage_engine(use_torch=False).workers == 1


def test_usual_workers_are_for_slow_work_and_those_that_were_asked_for_work_always():
    usual, asked = engine_of({}, 2), engine_of({"MEDIM_WORKERS": "2"}, 2)
    assert usual.hands_out(slow=True) and not usual.hands_out(slow=False)
    assert asked.hands_out(slow=False) and engine_of({"MEDIM_ENGINE": "ray"}).hands_out(slow=False)
    assert not ALONE.hands_out(slow=True)


def test_workers_of_one_machine_share_its_threads():
    assert [Engine("local", workers, 0, 0).worker_threads(4, 100) for workers in (1, 2, 3, 8)] == [4, 2, 1, 1]
    assert [Engine("local", 8, 0, 0).worker_threads(8, jobs) for jobs in (0, 1, 2, 100)] == [8, 8, 4, 1]
    assert Engine("local", 8, 1, 0).worker_threads(4, 9) == Engine("ray", 8, 0, 0).worker_threads(4, 9) == 4


def test_every_worker_has_gpus_of_its_own():
    assert visible_gpus(Engine("local", 4, 0, 0), None) == []
    assert visible_gpus(Engine("local", 3, 1, 0), None) == ["0", "1", "2"]
    assert visible_gpus(Engine("local", 2, 2, 0), "4,5,6,7") == ["4,5", "6,7"]
    with pytest.raises(ValueError, match="3 workers of 1 GPUs need 3, CUDA_VISIBLE_DEVICES names 1"):
        visible_gpus(Engine("local", 3, 1, 0), "2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("engine", [Engine("local", 1, 1, 0), Engine("local", 2, 1, 0)], ids=["alone", "two"])
def test_a_worker_that_was_promised_a_gpu_does_not_work_on_the_cpu(sources, tmp_path, monkeypatch, engine):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    shards, with_torch = list_shards(sources, tmp_path / "out", code="1"), replace(work(tmp_path), use_torch=True)
    with pytest.raises(RuntimeError, match="MEDIM_WORKER_GPUS asks for 1 GPUs, torch sees 0 on"):
        map_shards(with_torch, shards, engine, name="squares")
    assert no_gpu(1, work(tmp_path)) is None  # not torch's work
    assert no_gpu(0, with_torch) is None


def test_no_more_ray_workers_than_the_nodes_have_room_for(capsys):
    nodes = [{"CPU": 6.0, "GPU": 3.0, "memory": 1e9}, {"CPU": 2.0, "GPU": 3.0}]
    assert workers_that_fit(Engine("ray", 5, 1, 0), nodes) == 5 and not capsys.readouterr().out
    assert workers_that_fit(Engine("ray", 8, 2, 0), nodes) == 2  # three times two GPUs are there, but not on one node
    assert "a node of 2 CPUs and 3 GPUs: room for 2 of 8 workers" in capsys.readouterr().out
    assert workers_that_fit(Engine("ray", 9, 0, 0), nodes) == 8
    assert workers_that_fit(Engine("ray", 4, 1, 0), [{"CPU": 1.0, "GPU": 4.0}, {"CPU": 9.0}]) == 1
    with pytest.raises(ValueError, match="a node of 6 CPUs and 0 GPUs, a worker needs 1 and 1: lower MEDIM_WORKER_GP"):
        workers_that_fit(Engine("ray", 1, 1, 0), [{"CPU": 6.0}])


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_engine_says_how_to_get_it(sources, tmp_path):
    with pytest.raises(ModuleNotFoundError, match="cluster"):
        map_shards(work(tmp_path), list_shards(sources, tmp_path / "out", code="1"), RAY, name="squares")
