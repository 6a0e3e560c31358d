"""One finished run of the small graph, copied by every test that changes it."""

import pytest
from worlds import new_clone


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
