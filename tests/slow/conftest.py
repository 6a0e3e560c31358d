"""One finished run of the small graph, copied by every test that changes it; and a small graph under Prefect."""

import pytest
from worlds import new_clone

from benchmarks.small_flow import SmallFlow, wait_for


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A clone in which `dvc repro` ran once. Tests leave it as it is; see `fresh`."""
    clone = new_clone(tmp_path_factory.mktemp("worlds") / "finished")
    clone.first_run = clone.repro()
    return clone


@pytest.fixture
def fresh(finished, tmp_path):
    """A copy of the finished clone, with its cache."""
    return finished.copy(tmp_path / "clone")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Five small stages with a Prefect server and a worker, shared by the tests of a file; see small_flow.py."""
    flow = SmallFlow(tmp_path_factory.mktemp("flows") / "small")
    try:
        flow.said = flow.start()
        yield flow
    finally:
        flow.start("--stop")
    wait_for(lambda: not flow.processes(), 30, lambda: f"end of {flow.processes()}")
