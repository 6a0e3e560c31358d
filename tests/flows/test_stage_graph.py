"""The graph as DVC resolves it, and what of it is stale: parsing, closures, and DVC itself on a small repository."""

import json
import os
import subprocess
import sys

import pytest

from flows.dvc_calls import DvcError
from flows.graph import Graph, GraphError, computing_stages, parse_dot, read_graph, with_prefix
from flows.stages_to_run import busy_with, parse_status, stages_to_run, stale_stages

DOT = """strict digraph  {
"draw";
"train@one";
"train@two";
"draw" -> "train@one";
"draw" -> "train@two";
"train@one" -> "tables";
"train@two" -> "tables";
"alone";
"tables";
}
"""
GRAPH = Graph(parse_dot(DOT), frozenset({"train@one", "train@two"}))


def test_dot_is_read_with_arrows_from_need_to_follower():
    assert GRAPH.above == {
        "draw": frozenset(),
        "alone": frozenset(),
        "train@one": {"draw"},
        "train@two": {"draw"},
        "tables": {"train@one", "train@two"},
    }


def test_closures_go_both_ways():
    assert GRAPH.needed(["train@one"]) == {"draw", "train@one"}
    assert GRAPH.needed(["tables"]) == {"draw", "train@one", "train@two", "tables"}
    assert GRAPH.followers(["train@one"]) == {"train@one", "tables"}
    assert GRAPH.followers(["alone"]) == {"alone"}


def test_the_order_puts_needs_first_whatever_the_names():
    graph = Graph({"a": frozenset({"z"}), "z": frozenset({"m"}), "m": frozenset(), "b": frozenset()}, frozenset())
    assert graph.ordered({"a", "b", "m", "z"}) == ["b", "m", "z", "a"]
    assert graph.ordered({"a", "m"}) == ["a", "m"], "m is no direct need of a, and what lies between is not to run"


@pytest.mark.parametrize(
    ("stale", "targets", "expected"),
    [
        ({"train@one"}, ["tables"], ["train@one", "tables"]),
        ({"draw"}, ["tables"], ["draw", "train@one", "train@two", "tables"]),
        ({"draw"}, ["train@two"], ["draw", "train@two"]),
        ({"alone"}, ["tables"], []),
        (set(), ["tables"], []),
    ],
)
def test_stale_stages_and_their_followers_run_where_a_target_needs_them(stale, targets, expected):
    assert stages_to_run(GRAPH, stale, targets) == expected


def test_targets_are_found_by_prefix_or_the_error_says_what_there_is():
    assert with_prefix(GRAPH, ["train", "draw"]) == ["draw", "train@one", "train@two"]
    with pytest.raises(GraphError, match=r"no stage instance begins with 'tabels' \(did you mean 'tables'\?\).*alone"):
        with_prefix(GRAPH, ["train", "tabels"])


def test_stages_with_threads_compute():
    stages = {"draw": {"params": ["seed"]}, "train": {"params": ["seed", "threads", "train.x"]}, "copy": {}}
    assert computing_stages({"stages": stages}) == {"train"}


def test_status_is_read_or_refused():
    status = {"train@one": [{"changed deps": {"x": "modified"}}], "tables": ["changed command"]}
    assert parse_status(json.dumps(status)) == {"train@one", "tables"}
    assert parse_status("{}") == set()
    for text in ("", "[]", "Data and pipelines are up to date."):
        with pytest.raises(DvcError, match="dvc status --json printed no"):
            parse_status(text)


def test_a_busy_dvc_is_told_from_other_trouble():
    text = (
        "ERROR: '/x/runs' is busy, it is being blocked by:\n  (PID 12): dvc repro -s a\n  (PID 13): dvc repro -s b\n\n"
        "If there are no processes with such PIDs, you can manually remove '/x/.dvc/tmp/rwlock' and try again.\n"
    )
    assert busy_with(text) == "(PID 12): dvc repro -s a, (PID 13): dvc repro -s b"
    assert busy_with("ERROR: './dvc.yaml' is invalid.") is None


DVC_YAML = """
stages:
  draw:
    cmd: mkdir -p out/parts && echo drawn > out/drawn
    outs: [out/drawn]
  train:
    matrix: {variant: ["one", "two"]}
    cmd: echo ${item.variant} > out/parts/${item.variant}
    deps: [out/drawn]
    params: [threads]
    outs: ["out/parts/${item.variant}"]
  tables:
    cmd: cat out/parts/* > out/table
    deps: [out/parts]
    outs: [out/table]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / "params.yaml").write_text("threads: 1\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=folder, check=True)
    return folder


def test_dvc_itself_tells_the_graph(repository, monkeypatch):
    monkeypatch.chdir(repository)
    graph = read_graph()
    assert graph.above == {
        "draw": frozenset(),
        "train@one": {"draw"},
        "train@two": {"draw"},
        "tables": {"train@one", "train@two"},  # it depends on the folder that holds their outputs
    }
    assert graph.computing == {"train@one", "train@two"}


def hold(repository, pid):
    """The lock file of a running `dvc repro -s train@one`."""
    path = str((repository / "out/parts/one").resolve())
    lock = repository / ".dvc/tmp/rwlock"
    lock.write_text(json.dumps({"write": {path: {"pid": pid, "cmd": "dvc repro -s train@one"}}, "read": {}}))
    return lock


def test_a_busy_dvc_is_waited_for_and_then_says_what_is_stale(repository, monkeypatch):
    monkeypatch.chdir(repository)
    lock, said = hold(repository, os.getpid()), []

    def say(text):
        said.append(text)
        lock.write_text("{}")

    assert stale_stages(600, say) == {"draw", "train@one", "train@two", "tables"}
    assert said == [f"waiting: DVC is busy with (PID {os.getpid()}): dvc repro -s train@one"]


def test_the_wait_for_a_busy_dvc_ends(repository, monkeypatch):
    monkeypatch.chdir(repository)
    lock = hold(repository, os.getpid())
    with pytest.raises(DvcError, match="is busy"):
        stale_stages(0, print)
    lock.write_text("{}")
