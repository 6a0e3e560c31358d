"""A finished repro is one MLflow run, however often it is recorded; table rows carry its id; its model generates."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import tracking
from pipeline.paths import World
from pipeline.publish_provenance import machine
from pipeline.repro_record import Served, record_repro, repros
from pipeline.stage import content_hash
from pipeline.tracking_repros import MARK, repro_run
from pipeline.tracking_store import locked_store

sys.path.append(str(Path(__file__).parents[1] / "medim"))  # where the tiny models are

import tiny_medim as tiny

from medim.pairs import Pair, decode_png, encode_png, write_pairs
from medim.serving import INPUTS, OUTPUTS, open_generator
from medim.tokenizers.vqgan import save_vqgan

CODE = Path("code/prepare_data.txt")
TINY = World(Path("runs/tiny"))
SERVED = Served("medim", "medim.serving:open_generator", ("medim", "vqgan"), "generate")
LAST = "record_tables"
SAMPLING = {
    "chunk": 2,
    "sampler": asdict(tiny.SAMPLER),
    "sampler_of": {"joint": {"text_steps": 2}},
    "sampler_of_model": {"medim": {"image_steps": 2}},
}
PARAMS = {
    "profile": "tiny",
    "world": "tiny",
    "seed": 1,
    "threads": 1,
    "train_medim": {"variants": ["medim"], "optim": {"lr": 1e-3}},
    "generate": SAMPLING,
    "notes": {"long": "x" * 7000},
}
GRAPH = {
    "stages": {
        "prepare_data": {"cmd": "x"},
        "train_medim": {"matrix": {"variant": "${train_medim.variants}"}, "cmd": "x"},
        LAST: {"cmd": "x"},
    }
}
PNG = encode_png(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
BASE64 = base64.b64encode(PNG).decode()
QUESTIONS = [
    {"task": "image_to_report", "seed": 3, "image": PNG},
    {"task": "report_to_image", "seed": 4, "prompt": "chest x-ray", "report": "there is a left effusion."},
    {"task": "joint", "seed": 5},
    {"task": "image_to_report", "seed": 6, "image": BASE64},
    {"task": "joint", "seed": 2**62},
]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def write_state(params=PARAMS, **deps):
    """params.yaml and a dvc.lock that knows the whole graph; `deps`: what stands for prepare_data's code."""
    write(Path("params.yaml"), yaml.safe_dump(params))
    code = deps.get("code", "a")
    write(CODE, code)
    pairs = {"path": TINY.pairs_folder().as_posix(), "md5": "p.dir"}
    outs = [{"path": "runs/tiny/models/medim", "md5": "b.dir"}]
    lr = {"params.yaml": {"train_medim.optim.lr": params["train_medim"]["optim"]["lr"], "seed": params["seed"]}}
    stages = {
        "prepare_data": {"cmd": "x", "deps": [{"path": CODE.as_posix(), "md5": md5(code)}], "outs": [pairs]},
        "train_medim@medim": {"cmd": "x", "params": lr, "outs": outs, "deps": [dict(pairs)]},
    }
    write(Path("dvc.lock"), yaml.safe_dump({"schema": "2.0", "stages": stages}))


def md5(text):
    return hashlib.md5(text.encode()).hexdigest()


def git(*words):
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *names, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A repository with a finished repro in it: data, models, costs, a table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_state()
    write(Path("dvc.yaml"), yaml.safe_dump(GRAPH))
    write(Path(".gitignore"), "/runs/\n/mlflow/\n/code/\n")
    for name, seconds in (("prepare_data", 30), ("train_medim@medim", 600), (LAST, 6), ("of_another_profile", 9)):
        write(TINY.costs(name), {"instance": name, "seconds": seconds})
    columns = [("MeDiM", 0.5), ("trivial: constant", 0.1), ("R2Gen", None)]
    cells = [{"row": row, "column": "a/BLEU (x)", "metric": "BLEU", "value": value} for row, value in columns]
    write(TINY.table("mission"), {"id": "mission", "title": "Mission", "profile": "tiny", "cells": cells})
    for split, rows in (("train", 3), ("test", 2)):
        pairs = [Pair(f"{n}", "s", "p", "a", "", PNG, "chest x-ray", "there is a left effusion.") for n in range(rows)]
        write_pairs(TINY.pairs("a", split), pairs)
    tiny.medim().save(TINY.model("medim"))
    save_vqgan(tiny.vqgan(), TINY.model("vqgan"))
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "first")
    return tmp_path


def record():
    return record_repro(TINY, LAST, SERVED)


def test_the_record_says_what_was_run(world):
    facts = json.loads(record().read_text())
    assert (facts["commit"], facts["dirty"]) == (git("rev-parse", "HEAD"), False)
    assert facts["minutes"] == {"prepare_data": 0.5, "train_medim@medim": 10.0, LAST: 0.1}
    assert facts["results"] == {"medim/a/bleu_x": 0.5}
    assert facts["machine"] == machine() | {"gpus": facts["machine"]["gpus"]}
    files = {one["split"]: one for one in facts["data"]}
    assert set(files) == {"train", "test"} and files["train"]["profile"]["rows"] == 3
    assert content_hash(Path(files["test"]["path"])).startswith(files["test"]["digest"])
    run = repro_run(repros(TINY)[0])
    assert (run.name, run.end_time - run.start_time) == ("pipeline", 636_000)
    assert run.params["train_medim.optim.lr"] == "0.001" and run.params["train_medim.variants"] == '["medim"]'


def test_the_same_state_leaves_one_record_and_another_commit_a_second(world):
    first = record()
    text = first.read_bytes()
    write(Path("dvc.yaml"), yaml.safe_dump(GRAPH) + "# a comment\n")  # not committed
    assert record() == first and first.read_bytes() == text
    git("commit", "-qam", "second")
    second = record()
    assert second != first and repros(TINY) == [first, second]
    write_state(code="b")
    third = record()
    assert len(repros(TINY)) == 3 and json.loads(third.read_text())["dirty"] is False  # dvc.lock may differ
    write_state()
    write(Path(".gitignore"), "/runs/\n")
    assert record() == second and repros(TINY) == [first, third, second]


def test_a_change_that_is_not_committed_is_said(world):
    write(Path(".gitignore"), "/runs/\n")
    assert json.loads(record().read_text())["dirty"] is True


def test_what_is_not_finished_is_not_recorded(world, capsys):
    write(Path("params.yaml"), yaml.safe_dump(PARAMS | {"train_medim": {"variants": ["medim"], "optim": {"lr": 1.0}}}))
    assert record() is None
    assert "dvc.lock is not of now for train_medim@medim" in capsys.readouterr().out
    write(Path("params.yaml"), yaml.safe_dump(PARAMS))
    assert record_repro(World(Path("runs/other")), LAST, SERVED) is None  # dvc.lock is of the world tiny
    capsys.readouterr()
    write(CODE, "changed since, and not run")
    assert record() is None
    assert "dvc.lock is not of now for prepare_data" in capsys.readouterr().out
    write_state()
    lock = Path("dvc.lock").read_text()
    write(Path("dvc.lock"), lock.replace("p.dir", "q.dir", 1))  # drawn anew, and not trained on
    assert record() is None
    assert "dvc.lock is not of now for train_medim@medim" in capsys.readouterr().out
    Path("dvc.lock").unlink()
    assert record() is None
    assert repros(TINY) == []


def test_tables_that_no_repro_made_are_told_from_those_of_the_last_one(world):
    path, table = record(), TINY.table("mission")
    assert tracking.is_of_repro(TINY)
    os.utime(table, ns=(0, path.stat().st_mtime_ns + 1))  # written anew by a graph that has not run whole
    assert not tracking.is_of_repro(TINY)
    os.utime(path, ns=(0, table.stat().st_mtime_ns))
    assert tracking.is_of_repro(TINY)


def test_sync_shows_the_run_marks_the_rows_and_registers_the_model(world, capsys):
    """One store for all of it, since creating one takes seconds."""
    import mlflow

    record()
    assert not json.loads(next(TINY.repros().glob("*.json")).read_text())["dirty"]
    assert tracking.main(["sync"]) == 0
    said = capsys.readouterr().out
    assert "tiny/pipeline" in said and "models:/medim@tiny" in said and "/#/models/medim/versions/1" in said
    client, (run,) = runs_of("tiny/pipeline")
    assert run.info.run_name == "pipeline"
    assert run.data.metrics["minutes/train_medim_medim"] == 10.0 and run.data.metrics["medim/a/bleu_x"] == 0.5
    assert len(run.data.params["notes.long"]) == 6000
    tags = run.data.tags
    assert tags["git_commit"] == tags["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert (tags["git_dirty"], tags["profile"], tags["cores"]) == ("no", "tiny", str(machine()["cores"]))
    assert {"dvc_lock", "processor", "gpu", "version.torch"} <= set(tags)
    the_data_are_there(mlflow, run)
    assert {row.data.tags[MARK] for row in runs_of("tiny/mission")[1]} == {run.info.run_id}
    the_model_answers(mlflow, client)

    assert not any(one.changed for one in tracking.sync())  # the same state: nothing new
    write_state(code="b")
    record()
    assert {one.name for one in tracking.sync() if one.changed} == {"tiny/pipeline"}  # same tables, same model
    later = max(runs_of("tiny/pipeline")[1], key=lambda one: one.info.end_time)
    assert {row.data.tags[MARK] for row in runs_of("tiny/mission")[1]} == {later.info.run_id} != {run.info.run_id}
    a_version_more_where_the_weights_changed(client, capsys)


def runs_of(name):
    with locked_store() as client:
        experiment = client.get_experiment_by_name(name)
        return client, list(client.search_runs([experiment.experiment_id], "tags.current = 'yes'"))


def the_data_are_there(mlflow, run):
    found = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert {one.name for one in found.values()} == {"a"} and set(found) == {"train", "test"}
    for split, dataset in found.items():
        assert content_hash(TINY.pairs("a", split)).startswith(dataset.digest)
        assert Path(mlflow.data.get_source(dataset).load()).samefile(TINY.pairs("a", split))


def the_model_answers(mlflow, client):
    version = client.get_model_version_by_alias("medim", "tiny")
    folder = Path(version.source.removeprefix("file://"))
    kinds = {path.suffix for path in (folder / "artifacts").rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"} and (folder / "code/medim/serving.py").is_file()
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pt", ".pyc")]
    uri = f"sqlite:///{Path('mlflow/mlflow.db').resolve()}"
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/medim@tiny")
    mlflow.set_tracking_uri(None)  # which else stands in MLFLOW_TRACKING_URI for the rest of the process
    assert [one.name for one in model.metadata.signature.inputs] == list(INPUTS)
    answers = model.predict(pd.DataFrame(QUESTIONS, index=range(10, 15)))
    direct = open_generator({"medim": TINY.model("medim"), "vqgan": TINY.model("vqgan")}, SAMPLING).predict(QUESTIONS)
    assert list(answers.columns) == list(OUTPUTS) and list(answers.index) == list(range(10, 15))
    assert answers.drop(columns="image").to_dict("records") == [
        {key: value for key, value in one.items() if key != "image"} for one in direct
    ]
    assert [base64.b64decode(one) for one in answers["image"]] == [one["image"] for one in direct]


def a_version_more_where_the_weights_changed(client, capsys):
    tiny.medim(seed=1).save(TINY.model("medim"))
    capsys.readouterr()
    tracking.sync()  # dvc.lock is of the old weights
    assert "medim of tiny has changed since the last finished repro" in capsys.readouterr().out
    write_state(code="c")
    record()
    tracking.sync()
    assert client.get_model_version_by_alias("medim", "tiny").version in (2, "2")
    tiny.medim().save(TINY.model("medim"))  # and back: the old version is the world's again
    write_state()
    record()
    assert not any(one.changed for one in tracking.sync())
    assert client.get_model_version_by_alias("medim", "tiny").version in (1, "1")
    shutil.rmtree(TINY.model("vqgan"))  # a repro that has no model to register
    write_state(code="d")
    record()
    assert [one.name for one in tracking.sync()] == ["tiny/mission", "tiny/pipeline"]


@pytest.mark.slow
def test_the_model_loads_where_the_project_is_not(world):
    """Another folder, nothing of ours on the path: the code that was logged is what answers."""
    record()
    tracking.sync()
    code = (
        "import sys, mlflow, pandas as pd\n"
        "sys.path = [p for p in sys.path if not __import__('pathlib').Path(p, 'medim').is_dir()]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        f"mlflow.set_tracking_uri('sqlite:///{Path('mlflow/mlflow.db').resolve()}')\n"
        "model = mlflow.pyfunc.load_model('models:/medim@tiny')\n"
        "out = model.predict(pd.DataFrame([{'task': 'joint', 'seed': 5}]))\n"
        "print(sys.modules['medim.serving'].__file__, out['image'][0])\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd="/", capture_output=True, text=True)
    place, image = done.stdout.split()[-2:]
    assert Path(place).is_relative_to(Path("mlflow/artifacts").resolve())
    assert decode_png(base64.b64decode(image)).shape == (24, 24, 3)
