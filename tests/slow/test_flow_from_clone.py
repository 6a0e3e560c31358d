"""From a clean clone: the documented commands run a deployment on the whole (tiny) graph to its end."""

import json
import os
import socket
import subprocess

import pytest
from mlflow import MlflowClient
from worlds import ROOT, git_clone

from benchmarks.small_flow import run_id, wait_for
from flows.deployments import deployments

BESIDE = ("low/", "high/", "n/", "paper/", "work/")  # metrics that are no cell: interval, number, printed value, costs
ARMS = {"real only", "real + UniDisc", "real + MeDiM"}
MEASURED = {"figure5a": {"UniDisc", "MeDiM"}} | dict.fromkeys(("figure5b", "figure5c", "figure6a", "figure6b"), ARMS)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone by git of what is committed, switched to `tiny`, with a server, a work pool and a worker of its own."""
    if changed := subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout:
        pytest.skip(f"a clone by git has what is committed only, and this is not:\n{changed}")
    folder = tmp_path_factory.mktemp("flows")
    clone = git_clone(folder / "clone")
    clone.switch("tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    clone.variables = {"PREFECT_API_URL": address, "MEDIM_SLOTS": str(folder / "slots")}
    try:
        clone.python("-m", "flows.start", **clone.variables)
        yield clone
    finally:
        clone.python("-m", "flows.start", "--stop", **clone.variables)
    server = int((clone.folder / ".prefect/server.lock").read_text())
    wait_for(lambda: not os.path.exists(f"/proc/{server}"), 30, lambda: f"the end of server {server}")  # noqa: PTH110


def is_cell(metric):
    return not metric.startswith(BESIDE)


# The second one finds most of its stages done.
@pytest.mark.parametrize("name", sorted(one.name for one in deployments()))
def test_the_documented_commands_end_completed(clone, name):
    said = clone.call("prefect", "deployment", "run", name, "--watch", **clone.variables)
    assert "Completed" in said and run_id(said)
    assert clone.call("dvc", "status", **clone.variables).strip() == "Data and pipelines are up to date."
    assert (clone.folder / "runs/tiny/tables/mission.json").is_file()
    client = MlflowClient(f"sqlite:///{clone.folder}/mlflow/mlflow.db")
    for figure, expected in MEASURED.items():
        experiment = client.get_experiment_by_name(f"tiny/{figure}")
        runs = client.search_runs([experiment.experiment_id], "tags.current = 'yes' and tags.kind != 'table'")
        table = json.loads((clone.folder / f"runs/tiny/tables/{figure}.json").read_text())
        shown = {run.info.run_name: run.data for run in runs}
        assert len(shown) == len(runs) and shown.keys() == {cell["row"] for cell in table["cells"]}
        for row, data in shown.items():
            measured = [c["value"] for c in table["cells"] if c["row"] == row and c["value"] is not None]
            assert sorted(v for n, v in data.metrics.items() if is_cell(n)) == sorted(measured), (figure, row)
            assert data.tags["pipeline_run"]
        named = {row for row, data in shown.items() if any(map(is_cell, data.metrics))}
        assert named >= expected, f"{figure}: rows of the tiny profile without a number"
