"""What a flow shows: rows of stages, tables with links to MLflow; and which flow runs are dead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.flow_report import are_new, stage_rows, tables_page
from flows.flow_runs import ended_runs, forget, living_runs, say_alive
from flows.mlflow_links import Link, SyncError, parse_links, sync
from flows.run_stages import Outcome
from pipeline.paths import World
from pipeline.tracking import print_links
from pipeline.tracking_tables import Shown


def test_links_are_read_as_tracking_prints_them(capsys):
    base = "http://127.0.0.1:5000/#/experiments"
    shown = [
        Shown(
            "phantom_3x/table1", "Chest", f"{base}/1/runs?workflowType=machine_learning&viewStateShareKey=paper", True
        ),
        Shown("phantom_3x/trainings", "trainings", f"{base}/2/runs?a=b&compareRunsMode=CHART", False),
    ]
    print_links(shown)
    links = parse_links(capsys.readouterr().out)
    assert links == [Link("table1", shown[0].address), Link("trainings", shown[1].address)]
    assert parse_links("pages: .venv/bin/mlflow ui --port 5000\n") == []


def test_a_world_that_mlflow_cannot_show_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SyncError, match="no world 'nowhere' under runs/"):
        sync(World(Path("runs/nowhere")))


def test_rows_say_what_became_of_a_stage_and_why():
    done = Outcome("train@one", "done", attempts=2, seconds=1.26, reason="CUDA out of memory")
    lost = Outcome("tables", "not run", reason="x" * 1000)
    rows = stage_rows([done, lost])
    assert rows[0] == {"stage": "train@one", "state": "done", "attempts": 2, "seconds": 1.3, "reason": ""}
    assert rows[1]["reason"] == "x" * 300


def test_the_page_holds_the_tables_that_there_are_with_their_links(tmp_path):
    world = World(tmp_path / "runs/tiny")
    world.tables().mkdir(parents=True)
    world.table("table1", ".md").write_text("| row | FID |\n")
    world.table("table2", ".md").write_text("| row | IS |\n")
    page = tables_page(
        world, ["table1", "table2", "table3"], [Link("table1", "http://a/1"), Link("figures", "http://a/2")]
    )
    assert "| row | FID |\n\n[table1 in MLflow](http://a/1)" in page
    assert f"| row | IS |\n\n`{world.table('table2', '.md')}`" in page
    assert "table3" not in page and page.endswith("More in MLflow: [figures](http://a/2)\n")


def test_tables_of_an_earlier_run_are_called_so(tmp_path):
    world = World(tmp_path / "runs/tiny")
    world.tables().mkdir(parents=True)
    world.table("table1", ".md").write_text("| row | FID |\n")
    done, lost = Outcome("record_tables", "done"), Outcome("record_tables", "not run")
    assert are_new([]) and are_new([done]) and are_new([Outcome("train@one", "failed"), done])
    assert not are_new([Outcome("train@one", "failed"), lost])
    links = [Link("table1", "http://a/1")]
    assert "**Tables of an earlier run**: record_tables is not done" in tables_page(world, ["table1"], links, False)
    assert "earlier run" not in tables_page(world, ["table1"], links)


def test_a_flow_run_that_was_killed_is_told_from_one_that_lives(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from flows.flow_runs import say_alive\n"
        "say_alive('killed', Path(sys.argv[1])); print(1, flush=True); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=env)
    process.stdout.read(1)
    say_alive("lives", tmp_path)
    say_alive(None, tmp_path)
    assert ended_runs(tmp_path) == []
    process.kill()
    process.communicate()
    assert living_runs(tmp_path) == ["lives"]
    assert ended_runs(tmp_path) == ended_runs(tmp_path) == ["killed"]  # told as often as it is asked, until forgotten
    forget("killed", tmp_path)
    assert ended_runs(tmp_path) == [] and [path.name for path in tmp_path.iterdir()] == ["lives"]
