"""The order of stages, GPUs, retries and two flows at once: real processes, with tests/flows/fake_dvc.sh as DVC."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from process_trees import wait_for

from flows import run_stages, stage_process, stages_to_run
from flows.graph import Graph
from flows.run_stages import CallerGoneError, Policy, StageRunner, lock_file
from flows.slots import Slots

FAKE = Path(__file__).with_name("fake_dvc.sh")
GRAPH = Graph(
    {
        "draw": frozenset(),
        "train@one": frozenset({"draw"}),
        "train@two": frozenset({"draw"}),
        "evaluate@one": frozenset({"train@one"}),
        "tables": frozenset({"evaluate@one", "train@two"}),
    },
    frozenset({"train@one", "train@two"}),
)
ALL = ["draw", "train@one", "train@two", "evaluate@one", "tables"]
TRANSIENT = "0 255 ERROR: failed to reproduce 'x': failed to run: x, exited with 75"
BUG = "0 255 ERROR: failed to reproduce 'x': failed to run: x, exited with 1"
BUSY = r"0 255 ERROR: 'y' is busy, it is being blocked by:\n  (PID 7): dvc repro -s y\n\nIf there are no"
FINE = "0 0 fine"


class Flow:
    """One flow in a folder of its own, its attempts in threads."""

    def __init__(self, folder, behaviour=None, devices=("a", "b"), policy=None):
        self.folder = folder
        (folder / "behaviour").mkdir(exist_ok=True)
        for stage, runs in (behaviour or {}).items():
            (folder / f"behaviour/{stage}").write_text("\n".join(runs) + "\n")
        self.pool = ThreadPoolExecutor(9)
        self.submitted = []
        self.runner = StageRunner(
            GRAPH, Slots(list(devices), folder / "slots"), policy or Policy(60, 2, 0.1), self.submit
        )

    def submit(self, attempt, number, needs):
        self.submitted.append((attempt.stage, number, list(needs)))
        return self.pool.submit(attempt.run, lambda _: None)

    def run(self, stages=ALL, **more):
        return {outcome.stage: outcome for outcome in self.runner.run(stages, **more)}

    def notes(self, file="starts"):
        """{stage, time, device} of every start or end, in order."""
        path = self.folder / file
        lines = [line.split(" ") for line in path.read_text().splitlines()] if path.is_file() else []
        return [{"stage": stage, "time": float(moment), "device": device} for stage, moment, device in lines]

    def started(self):
        return [note["stage"] for note in self.notes()]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage_process, "DVC", ("/bin/sh", str(FAKE)))
    monkeypatch.setattr(run_stages, "POLL", 0.05)
    monkeypatch.setattr(stages_to_run, "PAUSE", 0.1)
    return tmp_path


def test_a_stage_runs_after_all_that_it_needs_and_others_beside_it(folder):
    flow = Flow(folder, {"train@one": ["1 0 fine"], "train@two": ["1 0 fine"]})
    outcomes = flow.run()
    assert all(outcome.done and outcome.attempts == 1 for outcome in outcomes.values())
    starts = {note["stage"]: note for note in flow.notes()}
    ends = {note["stage"]: note["time"] for note in flow.notes("ends")}
    for stage, needs in GRAPH.above.items():
        assert all(ends[need] <= starts[stage]["time"] for need in needs)
    assert max(starts["train@one"]["time"], starts["train@two"]["time"]) < min(ends["train@one"], ends["train@two"])
    assert {starts["train@one"]["device"], starts["train@two"]["device"]} == {"a", "b"}
    assert starts["draw"]["device"] not in ("a", "b")
    assert ("tables", 1, ["evaluate@one", "train@two"]) in flow.submitted


def test_one_gpu_means_one_job_at_a_time(folder):
    flow = Flow(folder, {"train@one": ["0.5 0 fine"], "train@two": ["0.5 0 fine"]}, devices=["a"])
    flow.run(["train@one", "train@two"])
    (first, second), ends = flow.notes(), flow.notes("ends")
    assert second["time"] >= ends[0]["time"] and first["device"] == second["device"] == "a"


def test_only_what_is_to_run_runs_and_the_rest_counts_as_done(folder):
    flow = Flow(folder, {})
    assert set(flow.run(["evaluate@one", "tables"])) == {"evaluate@one", "tables"}
    assert flow.started() == ["evaluate@one", "tables"]


def test_a_transient_failure_is_tried_again_after_growing_pauses(folder):
    flow = Flow(folder, {"train@one": [TRANSIENT, TRANSIENT, FINE]}, policy=Policy(60, 2, 0.2))
    outcomes = flow.run()
    assert outcomes["train@one"].done and outcomes["train@one"].attempts == 3 and outcomes["tables"].done
    times = [note["time"] for note in flow.notes() if note["stage"] == "train@one"]
    assert times[1] - times[0] > 0.2 and times[2] - times[1] > 0.4


def test_retries_end(folder):
    outcomes = Flow(folder, {"train@one": [TRANSIENT]}).run()
    assert (outcomes["train@one"].state, outcomes["train@one"].attempts) == ("transient", 3)
    assert "exited with 75" in outcomes["train@one"].reason


def test_a_bug_is_not_tried_again_and_only_what_needs_it_is_left_out(folder):
    flow = Flow(folder, {"train@one": [BUG]})
    outcomes = flow.run()
    states = {stage: outcome.state for stage, outcome in outcomes.items()}
    assert states == {
        "draw": "done",
        "train@one": "failed",
        "train@two": "done",
        "evaluate@one": "not run",
        "tables": "not run",
    }
    assert outcomes["evaluate@one"].reason == "train@one is not done"
    assert sorted(flow.started()) == ["draw", "train@one", "train@two"]


def test_a_busy_dvc_is_waited_for_without_counting(folder):
    outcomes = Flow(folder, {"draw": [BUSY] * 3 + [FINE]}, policy=Policy(60, 0, 0)).run(["draw"])
    assert outcomes["draw"].done and outcomes["draw"].attempts == 1


def test_a_busy_dvc_is_asked_ever_more_rarely(folder, monkeypatch):
    monkeypatch.setattr(stages_to_run, "LONGEST_PAUSE", 0.4)
    flow = Flow(folder, {"draw": [BUSY] * 5 + [FINE]}, policy=Policy(60, 0, 0))
    flow.run(["draw"])
    times = [note["time"] for note in flow.notes()]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert all(pause > least for pause, least in zip(pauses, [0.1, 0.2, 0.4, 0.4, 0.4], strict=True))


def test_pauses_stay_finite_however_often_dvc_is_busy():
    pause = 0.0
    for _ in range(3000):
        pause = stages_to_run.longer(pause)
    assert pause == stages_to_run.LONGEST_PAUSE


def test_a_busy_dvc_is_not_waited_for_for_ever(folder):
    outcomes = Flow(folder, {"draw": [BUSY]}, policy=Policy(1, 0, 0)).run(["draw"])
    assert outcomes["draw"].state == "busy"


def test_waiting_for_a_slot_between_two_attempts_takes_nothing_of_a_stage_s_time(folder):
    flow = Flow(folder, {"train@one": [TRANSIENT, "1 0 fine"]}, devices=("a",), policy=Policy(4, 2, 1.0))
    other = Slots(["a"], folder / "slots")

    def take_it_meanwhile():
        wait_for(lambda: "train@one" in flow.started(), 30, "the first attempt")
        slot = wait_for(other.take, 10, "the slot")
        time.sleep(5)
        slot.lock.release()

    thread = threading.Thread(target=take_it_meanwhile)
    thread.start()
    outcomes = flow.run(["draw", "train@one"])
    thread.join()
    assert outcomes["train@one"].done and outcomes["train@one"].attempts == 2


def test_a_stage_has_its_time(folder):
    outcomes = Flow(folder, {"draw": ["60 0 fine"]}, policy=Policy(1, 2, 0)).run(["draw"])
    assert (outcomes["draw"].state, outcomes["draw"].attempts) == ("timed out", 1)


def test_two_flows_at_once_never_run_a_stage_twice_at_a_time(folder):
    behaviour = {stage: ["0.3 0 fine"] for stage in ALL}
    flows = [Flow(folder, behaviour), Flow(folder)]
    results = [None, None]

    def run(number):
        results[number] = flows[number].run()

    threads = [threading.Thread(target=run, args=[number]) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(outcome.done for result in results for outcome in result.values())
    starts, ends = flows[0].notes(), flows[0].notes("ends")
    for stage in ALL:  # the second run begins after the end of the first
        first, second = (sorted(note["time"] for note in notes if note["stage"] == stage) for notes in (starts, ends))
        assert len(first) == 2 and first[1] >= second[0]


def test_a_flow_whose_caller_is_gone_ends_what_it_runs(folder):
    flow = Flow(folder, {"train@one": ["60 0 fine"], "train@two": ["60 0 fine"]})
    begun = time.monotonic()
    with pytest.raises(CallerGoneError):
        flow.run(alive=lambda: flow.started().count("train@one") + flow.started().count("train@two") < 2)
    assert time.monotonic() - begun < 20
    assert not flow.runner._running or all(future.done() for future in flow.runner._running)
    assert [note["stage"] for note in flow.notes("ends")] == ["draw"]


def test_a_cancelled_flow_waits_for_no_pause_between_attempts(folder):
    flow = Flow(folder, {"draw": [TRANSIENT]}, policy=Policy(60, 2, 1000))
    begun = time.monotonic()
    with pytest.raises(CallerGoneError):
        flow.run(alive=lambda: flow.runner.outcomes["draw"].again == 0)
    assert time.monotonic() - begun < 10


def test_a_stage_that_another_process_holds_is_waited_for(folder):
    from flows.slots import try_lock

    held = try_lock(lock_file("draw"))
    flow = Flow(folder, {})
    thread = threading.Thread(target=flow.run, args=[["draw"]])
    thread.start()
    time.sleep(0.5)
    assert flow.started() == []
    held.release()
    wait_for(lambda: flow.started() == ["draw"], 10, "the stage's start")
    thread.join(10)


def test_it_is_said_once_for_whom_a_stage_waits(folder):
    from flows.slots import try_lock

    flow, said = Flow(folder, {}, devices=["a"]), []
    flow.runner.say = said.append
    stage_lock = try_lock(lock_file("draw"), note="draw of another flow")
    slot = Slots(["a"], folder / "slots").take("train@nine of another checkout")
    thread = threading.Thread(target=flow.run, args=[["draw", "train@one", "train@two"]])
    thread.start()
    wait_for(lambda: len(said) == 1, 10, "the first word")
    time.sleep(1)  # the stage is tried again twice in this time
    assert said == ["draw waits for draw of another flow"]
    stage_lock.release()
    wait_for(lambda: len(said) == 3, 10, "the words on the slot")
    slot.lock.release()
    thread.join(10)
    assert sorted(said[1:]) == [f"train@{n} waits for GPU a: train@nine of another checkout" for n in ("one", "two")]


def test_only_trouble_that_may_pass_is_tried_again_where_the_attempt_itself_breaks(folder):
    for number, error in (
        (1, TypeError("no such thing")),
        (3, BlockingIOError(11, "Resource temporarily unavailable")),
    ):
        flow = Flow(folder, {})

        def break_it(attempt, _number, _needs, flow=flow, error=error):
            def fail():
                attempt.failure = error
                raise error

            return flow.pool.submit(fail)

        flow.runner.submit = break_it
        outcome = flow.run(["draw"])["draw"]
        assert (outcome.attempts, outcome.done) == (number, False)
        assert str(error) in outcome.reason


def test_trouble_of_prefects_own_is_tried_again(folder):
    """The task never reached the stage: its future failed, the attempt never began."""
    flow = Flow(folder, {})
    submit, lost = flow.submit, []

    def lose_the_first(attempt, number, needs):
        if not lost:
            lost.append(attempt)
            return flow.pool.submit(lambda: 1 / 0)
        return submit(attempt, number, needs)

    flow.runner.submit = lose_the_first
    assert flow.run(["draw"])["draw"].done and lost[0].failure is None
