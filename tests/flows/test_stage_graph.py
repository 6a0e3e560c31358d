"""The graph as DVC resolves it, and what of it is stale: parsing, closures, and DVC itself on a small repository."""

import json
import time

import pytest
from process_trees import pids, wait_until_gone

import flows.stages_to_run as stages_to_run_module
from flows import dvc_calls
from flows.dvc_calls import CallerGoneError, DvcError
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
BUSY = (
    "ERROR: '/x/runs' is busy, it is being blocked by:\n  (PID 12): dvc repro -s a\n  (PID 13): dvc repro -s b\n\n"
    "If there are no processes with such PIDs, you can manually remove '/x/.dvc/tmp/rwlock' and try again.\n"
)
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
    assert busy_with(BUSY) == "(PID 12): dvc repro -s a, (PID 13): dvc repro -s b"
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
    (folder / ".dvc/tmp").mkdir(parents=True)
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n")
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


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """A function (texts): DVC gives these one after the other; one that begins with ERROR is a failure."""

    def answers(*texts):
        for number, text in enumerate(texts):
            (tmp_path / str(number)).write_text(text)
        code = (
            "file=$(ls | head -1); cat $file; grep -q ^ERROR $file && code=1 || code=0; "
            "[ $(ls | wc -l) = 1 ] || rm $file; exit $code"
        )
        monkeypatch.setattr(dvc_calls, "DVC", ("/bin/sh", "-c", code))
        monkeypatch.setattr(stages_to_run_module, "PAUSE", 0.01)
        monkeypatch.chdir(tmp_path)

    return answers


def test_a_busy_dvc_is_waited_for_and_each_other_process_named_once(answers):
    other, said = BUSY.replace("12", "14"), []
    answers(BUSY, BUSY, other, '{"tables": []}')
    assert stale_stages(60, said.append) == {"tables"}
    names = ["(PID 12): dvc repro -s a, (PID 13): dvc repro -s b", "(PID 14): dvc repro -s a, (PID 13): dvc repro -s b"]
    assert said == [f"waiting: DVC is busy with {name}" for name in names]


def test_a_dvc_that_waits_for_the_repositorys_lock_is_spoken_of_and_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr(dvc_calls, "DVC", ("/bin/sh", "-c", "exec sleep 60"))
    monkeypatch.setattr(dvc_calls, "POLL", 0.05)
    monkeypatch.setattr(dvc_calls, "QUIET", 0.1)
    said: list[str] = []
    begun = time.monotonic()
    with pytest.raises(DvcError, match=r"dvc status --json had no answer after \d s; who holds the repository's lock"):
        stale_stages(0.5, said.append)
    assert time.monotonic() - begun < 10
    assert len(said) == 1 and said[0].startswith("waiting for dvc status --json: another DVC may have")


@pytest.mark.parametrize("how", [CallerGoneError, KeyboardInterrupt])
def test_a_flow_that_ends_while_it_asks_leaves_no_process(how, tmp_path, monkeypatch):
    (tmp_path / "pids").mkdir()
    code = f"echo $$ > {tmp_path}/pids/one; sleep 60 & echo $! > {tmp_path}/pids/two; wait"
    monkeypatch.setattr(dvc_calls, "DVC", ("/bin/sh", "-c", code))
    found: list[int] = []

    def alive():
        found.extend(pids(tmp_path / "pids", 2))
        if how is KeyboardInterrupt:  # as a signal would raise it, anywhere
            raise KeyboardInterrupt
        return False

    with pytest.raises(how):
        stale_stages(60, lambda _: None, alive)
    assert len(found) == 2
    wait_until_gone(found, 10)


def test_beside_a_dvc_that_is_always_busy_nothing_is_known_and_all_is_asked_for(answers):
    answers(BUSY)
    said: list[str] = []
    assert stale_stages(60, said.append, patience=0.2) is None
    assert said[-1].startswith("DVC stays busy with (PID 12): dvc repro -s a")
    assert len(said) <= 2  # on a slow machine the first answer comes after the patience has ended
    assert stages_to_run(GRAPH, None, ["train@two"]) == ["draw", "train@two"]


def test_a_worker_that_is_gone_is_noticed_between_two_questions(answers, monkeypatch):
    answers(BUSY)
    monkeypatch.setattr(stages_to_run_module, "PAUSE", 60.0)
    begun, asked = time.monotonic(), []
    with pytest.raises(CallerGoneError):
        stale_stages(60, asked.append, lambda: not asked)
    assert time.monotonic() - begun < 10


def test_other_trouble_of_dvc_is_an_error_at_once(answers):
    answers("ERROR: './dvc.yaml' is invalid.", "{}")
    with pytest.raises(DvcError, match="is invalid"):
        stale_stages(60, print)
