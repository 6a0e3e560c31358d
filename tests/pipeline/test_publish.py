"""Publishing copies what was measured, says what made it, and refuses what nobody could reproduce."""

import hashlib
import json
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from pyarrow import parquet

from pipeline import publish
from pipeline.code_hash import write_hashes
from pipeline.paths import World
from pipeline.publish_provenance import Lock, PublishError, around_results, commit_of_clean_tree, machine

NONE = {"peak_bytes": 1, "parameters": None}
TINY = World(Path("runs/tiny"))
RESULTS = Path("docs/results/tiny")
PARAMS = """\
profile: tiny
world: tiny
seed: 0
threads: 1
prepare_data: {n: 3}
train_medim: {variants: [medim], steps: 5}
"""
DVC = """\
stages:
  prepare_data: {cmd: x}
  train_medim:
    matrix: {variant: "${train_medim.variants}"}
    cmd: x
  evaluate:
    matrix: {variant: "${train_medim.variants}"}
    cmd: x
"""
README = "# Title\n<!-- results:begin -->\nold\n<!-- results:end -->\nTail\n"


def write(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def md5(path):
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def git(*args):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *args], check=True, capture_output=True)


def write_lock():
    """What `dvc repro` would have written."""
    pairs, model = TINY.pairs_folder(), TINY.model("medim")

    def entry(name, deps, outs, params):
        code = [{"path": f"code/{name}.txt", "md5": md5(f"code/{name}.txt")}]
        return {"deps": code + deps, "outs": outs, "params": {"params.yaml": params}}

    data = [{"path": pairs.as_posix(), "md5": "d1.dir"}]
    weights = [{"path": model.as_posix(), "md5": "m1.dir"}]
    metrics = [{"path": TINY.metrics("medim").as_posix(), "md5": md5(TINY.metrics("medim"))}]
    stages = {
        "prepare_data": entry("prepare_data", [], data, {"prepare_data.n": 3}),
        "train_medim@medim": entry("train_medim@medim", data, weights, {"train_medim.steps": 5, "seed": 0}),
        "evaluate@medim": entry("evaluate@medim", [*weights, *data], metrics, {"seed": 0}),
    }
    write("dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("params.yaml", PARAMS)
    write("profiles/phantom.yaml", PARAMS.replace("tiny", "phantom"))
    write("profiles/tiny.yaml", "profile: tiny\nworld: tiny\n")
    write("dvc.yaml", DVC)
    write("README.md", README)
    write(".gitignore", "/runs/\n/code/\n/.work/\n")
    for stage in ("prepare_data", "train_medim", "evaluate"):
        write(f"stages/{stage}.py", "from medim import model\n" if stage == "train_medim" else "X = 1\n")
    write("medim/model.py", "A = 1\n")
    write_hashes(cache=None)
    write(TINY.metrics("medim"), json.dumps({"model": "medim", "rows": {"MeDiM": {"a": {"value": 1.0}}}}))
    write_lock()
    for name in ("mission", "table1"):
        cells = [{"row": row} for row in ("MeDiM", "MeDiM", "trivial: constant")]
        write(TINY.table(name), json.dumps({"id": name, "title": f"The {name}", "cells": cells}))
        write(TINY.table(name, ".md"), f"| {name} |\n|---|\n")
        write(TINY.table(name, ".csv"), "a\n")
        write(TINY.table(name, ".html"), "<body><p></body>")
    write(TINY.figure("paper/figure4"), "png")
    for task in ("joint", "report_to_image"):
        write(TINY.figure(f"samples_medim/medim-phantom_cxr-{task}"), "png")
    for instance, seconds in (("train_medim@medim", 3000.0), ("prepare_data", 600.0)):
        cost = {
            "instance": instance,
            "seconds": seconds,
            "peak_bytes": 1,
            "examples": 2,
            "parameters": None,
            "code": "x",
        }
        write(TINY.costs(instance), json.dumps(cost))
    reports = {
        "pair_id": ["p0", "p1"],
        "report": ["no effusion.", "Größe"],
        "row": ["R", "R"],
        "seed": [1, 2],
        "x": [0, 0],
    }
    path = TINY.generated_file("medim", "phantom_cxr", "image_to_report")
    path.parent.mkdir(parents=True)
    parquet.write_table(pa.table(reports), path)
    pairs = {"pair_id": ["p0"], "prompt": ["chest"], "report": ["x"], "findings": ["{}"], "image": [b""]}
    TINY.pairs("phantom_cxr", "test").parent.mkdir(parents=True)
    parquet.write_table(pa.table(pairs), TINY.pairs("phantom_cxr", "test"))
    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "all")
    return tmp_path


def row():
    return json.loads((RESULTS / "rows/medim.json").read_text())


def test_everything_is_published_with_its_origin(repository):
    assert publish.publish() == RESULTS
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert row()["commit"] == head
    assert row()["rows"] == {"MeDiM": {"a": {"value": 1.0}}}
    assert row()["hashes"]["code"] == {
        name: md5(f"code/{name}.txt") for name in ("train_medim@medim", "evaluate@medim")
    }
    assert set(row()["hashes"]["params"]) == {"train_medim@medim", "evaluate@medim"}
    assert row()["hashes"]["data"] == {"runs/tiny/data/pairs": "d1.dir"}
    assert row()["stale"] == []
    assert sorted(path.name for path in (RESULTS / "tables").iterdir()) == [
        f"{name}.{kind}" for name in ("mission", "table1") for kind in ("csv", "html", "json", "md")
    ]
    assert (RESULTS / "mission.json").read_bytes() == TINY.table("mission").read_bytes()
    costs = json.loads((RESULTS / "costs.json").read_text())
    numbers = {"seconds": 600.0, "peak_bytes": 1, "examples": 2, "parameters": None}
    numbers |= {"pretraining_examples": None, "pretraining_seconds": None}
    assert costs[0] == {"instance": "prepare_data", **numbers, "profiles": ["tiny"]}
    assert "| `prepare_data` | 10.0 | 2 |  |  | 0.00 |" in (RESULTS / "costs.md").read_text().splitlines()
    facts = json.loads((RESULTS / "provenance.json").read_text())
    assert (facts["commit"], facts["total_seconds"], facts["world"]) == (head, 3600.0, "tiny")
    assert facts["machine"]["cores"] >= 1
    assert facts["versions"]["python"].startswith("3.")
    reports = [json.loads(line) for line in (RESULTS / "reports/medim/phantom_cxr.jsonl").read_text().splitlines()]
    assert reports[1] == {"row": "R", "pair_id": "p1", "seed": 2, "report": "Größe"}
    assert len(reports) == 2
    assert json.loads((RESULTS / "reports/references/phantom_cxr.jsonl").read_text())["findings"] == "{}"


def test_tables_of_systems_say_what_their_rows_were_given(repository):
    """With the priors that stages of their own have made; other tables stay as they are."""
    priors = {"pretrain_backbone": (10, 120.0), "pretrain_towers": (300, 480.0)}
    for name, (examples, seconds) in priors.items():
        write(TINY.costs(name), json.dumps({"instance": name, "examples": examples, "seconds": seconds} | NONE))
    read = {f"runs/tiny/models/{name}": "hash" for name in ("backbone", "towers", "vqgan")}
    cost = {"examples": 1600, "seconds": 3000.0, "parameters": 12345, "peak_bytes": 1, "inputs": read}
    write(TINY.costs("train_medim@medim"), json.dumps({"instance": "train_medim@medim"} | cost))
    publish.publish()
    first, *_, line = (RESULTS / "tables/table1.md").read_text().splitlines()
    assert (first, line) == ("| table1 |", "| MeDiM | 1,600 | 310 | 12,345 | 60.0 |")
    page = (RESULTS / "tables/table1.html").read_text()
    assert page.startswith("<body><p><h2>What the rows were given</h2>") and page.endswith("</body>")
    assert '<td class="row">MeDiM</td><td>1,600</td><td>310</td><td>12,345</td><td>60.0</td>' in page
    assert (RESULTS / "tables/mission.md").read_bytes() == TINY.table("mission", ".md").read_bytes()
    TINY.costs("pretrain_towers").unlink()  # what the row was given is not known any more
    publish.publish()
    assert (RESULTS / "tables/table1.md").read_text().splitlines()[-1] == (
        "| MeDiM | 1,600 | not known | 12,345 | 50.0 and a prior's |"
    )


def test_readme_gets_the_results_between_its_markers(repository):
    publish.publish()
    text = Path("README.md").read_text()
    assert text.startswith("# Title\n<!-- results:begin -->\n")
    assert text.endswith("<!-- results:end -->\nTail\n")
    for part in (
        "### World `tiny`",
        "| mission |",
        "[The table1](docs/results/tiny/tables/table1.md)",
        "1.0 hours of stages",
    ):
        assert part in text
    assert "old" not in text
    folded = text[text.index("<details><summary>More figures</summary>") :]
    assert "[figure4](docs/results/tiny/figures/paper/figure4.png)" in folded and "samples_medim" not in folded
    for task in ("joint", "report_to_image"):
        name = f"medim-phantom_cxr-{task}"
        image = f'<img src="docs/results/tiny/figures/samples_medim/{name}.png" alt="{name}" width="100%">'
        assert f"<details><summary>Sheet: {name}</summary>\n\n{image}\n\n</details>" in text


def test_publishing_twice_changes_nothing(repository):
    publish.publish()
    before = {path: path.read_bytes() for path in [*RESULTS.rglob("*.*"), Path("README.md")]}
    publish.publish()
    assert {path: path.read_bytes() for path in [*RESULTS.rglob("*.*"), Path("README.md")]} == before


def test_uncommitted_code_is_refused_and_params_are_not(repository):
    write("params.yaml", PARAMS + "# comment\n")
    write("dvc.lock", Path("dvc.lock").read_text() + "# comment\n")
    write("docs/results/tiny/x.json", "{}")
    commit_of_clean_tree()
    write("new.py", "")
    with pytest.raises(PublishError, match=r"commit these first.*new\.py"):
        publish.publish()
    Path("new.py").unlink()
    write("README.md", README.replace("old", "new"))
    commit_of_clean_tree()
    write("README.md", README.replace("Tail", "Head"))
    with pytest.raises(PublishError, match=r"README\.md"):
        publish.publish()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: write("medim/model.py", "A = 2\n"), ["code of train_medim@medim"]),
        (lambda: write("medim/model.py", "A = 1  # comment\n"), []),
        (lambda: Path("stages/evaluate.py").unlink(), ["code of evaluate@medim"]),
        (lambda: write("params.yaml", PARAMS.replace("steps: 5", "steps: 6")), ["params of train_medim@medim"]),
        (
            lambda: write("dvc.lock", Path("dvc.lock").read_text().replace("d1.dir", "d2.dir")),
            ["data runs/tiny/data/pairs"],
        ),
    ],
)
def test_a_row_that_this_commit_would_make_differently_is_stale(repository, change, reason):
    publish.publish()
    TINY.metrics("medim").unlink()  # the row stays as it was published
    change()
    git("add", "-A")
    git("commit", "-q", "--allow-empty", "-m", "change")
    publish.publish()
    assert row()["stale"] == reason
    assert all(text in Path("README.md").read_text() for text in reason)


def test_a_row_keeps_its_commit_while_its_numbers_and_what_made_them_are_the_same(repository):
    publish.publish()
    first = row()["commit"]
    git("commit", "-q", "--allow-empty", "-m", "change")
    publish.publish()
    assert row()["commit"] == first
    lock = Path("dvc.lock").read_text()
    for changed in (md5("code/train_medim@medim.txt"), md5("code/evaluate@medim.txt")):  # of a stage before; its own
        write("dvc.lock", lock.replace(changed, "f" * 32))
        publish.publish()
        mine = changed == md5("code/evaluate@medim.txt")
        assert "f" * 32 in row()["hashes"]["code"].values()
        assert (row()["commit"] == first) is not mine
    write("dvc.lock", lock)
    write("docs/results/tiny/rows/medim.json", json.dumps(row() | {"rows": {}}))
    publish.publish()
    assert row()["commit"] == commit_of_clean_tree() != first


def test_rows_and_costs_made_elsewhere_stay(repository):
    publish.publish()
    TINY.costs("prepare_data").unlink()
    TINY.metrics("medim").unlink()
    publish.publish()
    assert {cost["instance"] for cost in json.loads((RESULTS / "costs.json").read_text())} == {
        "prepare_data",
        "train_medim@medim",
    }
    assert row()["rows"]["MeDiM"]


def test_refusals(repository):
    write(TINY.metrics("medim"), "{}")
    with pytest.raises(PublishError, match=r"is not what dvc\.lock recorded: run `dvc repro evaluate@medim`"):
        publish.publish()
    TINY.figure("figure4").write_bytes(bytes(publish.FIGURE_BYTES + 1))
    with pytest.raises(PublishError, match="draw it smaller"):
        publish.publish()
    for path in TINY.tables().iterdir():
        path.unlink()
    with pytest.raises(PublishError, match="run `dvc repro` first"):
        publish.publish()
    with pytest.raises(PublishError, match="README"):
        around_results("no markers")


def test_a_folder_is_traced_to_what_made_its_parts():
    outs = {"a": ["runs/w/generated/m/x"], "b": ["runs/w/models"]}
    stages = {name: {"outs": [{"path": path, "md5": "0"} for path in paths]} for name, paths in outs.items()}
    stages["a"]["deps"] = [{"path": "runs/w/models/m", "md5": "0"}]
    lock = Lock(stages)
    assert lock.makers("runs/w/generated") == ["a"]
    assert lock.makers("runs/w/models/m") == ["b"]
    assert set(lock.origin(Path("runs/w/generated/m"), World(Path("runs/w"))).params) == {"a", "b"}


def test_the_machine_is_described_without_its_name():
    import socket

    assert socket.gethostname() not in json.dumps(machine())
