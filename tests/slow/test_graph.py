"""`dvc repro` of the whole graph: runs through, reruns what an edit can change and nothing else, and is repeatable."""

import json

import pytest
from worlds import SMALL, new_clone

from pipeline.code_hash import TRANSPARENT, Sources, closure, instances
from pipeline.params_file import read_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def of(clone):
    """Every stage instance of a clone."""
    return instances(read_yaml(clone.folder / "dvc.yaml"), clone.params())


def named(clone, *stages):
    """Names of all instances of these stages."""
    return {instance.name for instance in of(clone) if instance.stage in stages}


def arms_of(clone, part):
    """Names of the downstream trainings whose name ends so, or of the methods that begin so."""
    items = {name: name.partition("@")[2] for name in named(clone, "train_downstream")}
    return {name for name, item in items.items() if item.endswith(f"-{part}") or item.startswith(f"{part}-")}


def test_the_graph_runs_through_and_a_second_run_does_nothing(finished):
    every = {instance.name for instance in of(finished)}
    assert finished.first_run == (every, set())
    assert finished.repro() == (set(), set())
    world = finished.folder / "runs/small"
    assert not list((finished.folder / ".work").glob("*/*/")), "a finished stage leaves no work behind"
    for table in ("mission", *(f"table{n}" for n in range(1, 8))):
        written = json.loads((world / f"tables/{table}.json").read_text())
        assert {"id", "title", "profile", "cells"} <= set(written)
        assert written["profile"] == "small"


def test_a_stage_loads_no_code_that_its_hash_does_not_hold(finished):
    """Whatever a stage's process had loaded at its end is in the import closure that code/<instance>.txt hashes."""
    transparent = {f"{name.replace('.', '/')}.py" for name in TRANSPARENT}
    sources = Sources(finished.folder)
    loaded = finished.files_loaded()
    assert set(loaded) == {instance.name for instance in of(finished)}
    for instance in of(finished):
        if instance.stage == "hash_code":
            continue
        files = closure(f"stages.{instance.stage}", sources, (value for _, value in instance.items))
        missing = loaded[instance.name] - {path.as_posix() for path in files} - transparent
        assert not missing, f"an edit of {sorted(missing)} would not rerun {instance.name}"


def test_a_stage_reads_what_dvc_yaml_says_it_depends_on(finished):
    lock = read_yaml(finished.folder / "dvc.lock")["stages"]
    for path in sorted((finished.folder / "runs/small/costs").glob("*.json")):
        costs = json.loads(path.read_text())
        deps = {dep["path"] for dep in lock[costs["instance"]]["deps"] if not dep["path"].startswith("code/")}
        undeclared = {read for read in costs["inputs"] if not any(f"{read}/".startswith(f"{dep}/") for dep in deps)}
        unread = {dep for dep in deps if not any(f"{read}/".startswith(f"{dep}/") for read in costs["inputs"])}
        assert (undeclared, unread) == (set(), set()), costs["instance"]


def test_a_sampler_setting_reruns_what_samples_and_what_follows(fresh):
    """Every system tracks the sampler (one list of parameters a stage); only MeDiM's answers are other bytes then."""
    fresh.edit("params.yaml", "text_steps: 4 ", "text_steps: 2 ")
    asked = named(fresh, "generate", "synthesize_pairs")
    follow = named(fresh, "mix_pairs", "evaluate_downstream", "prepare_reader_study", "record_tables")
    assert fresh.repro() == ({*asked, "evaluate@medim", *arms_of(fresh, "real_medim"), *follow}, set())


def test_a_comment_reruns_nothing_but_the_hashes(fresh):
    for path in ("medim/training.py", "medim/diffusion/sampler.py", "stages/generate.py", "pipeline/stage.py"):
        file = fresh.folder / path
        file.write_text(file.read_text() + "\n# A remark.\n")
    assert fresh.repro() == ({"hash_code"}, set())


def test_code_that_changes_reruns_its_stage_and_what_its_result_changes(fresh):
    fresh.edit("stages/evaluate.py", "params.settings, meteor, run.seed)", "params.settings, meteor, run.seed + 1)")
    ran, restored = fresh.repro()
    assert (ran, restored) == ({"hash_code", "record_tables", *named(fresh, "evaluate")}, set())
    file = fresh.folder / "stages/generate.py"
    file.write_text(file.read_text().replace("def main()", "UNUSED = 1\n\n\ndef main()"))
    assert fresh.repro() == ({"hash_code", *named(fresh, "generate")}, set()), "same answers: nothing follows"


@pytest.mark.parametrize("method", ["trivial", "r2gen"])
def test_an_edit_of_a_baseline_leaves_the_other_systems_alone(fresh, method):
    file = fresh.folder / f"medim/baselines/{method}.py"
    file.write_text(file.read_text() + "\nUNUSED = 1\n")
    own = {f"train_baseline@{method}", f"generate@{method}", *arms_of(fresh, method)}
    assert fresh.repro() == ({"hash_code", *own}, set())


def test_switching_to_another_world_and_back_trains_nothing_again(fresh):
    before = fresh.lock()
    fresh.write_profile("other", {**SMALL, "seed": 1})
    fresh.switch("other")
    trained, _ = fresh.repro("train_medim@medim")
    path = {
        "prepare_data",
        "train_vqgan",
        "tokenize_pairs",
        "pretrain_backbone",
        "pretrain_towers",
        "train_medim@medim",
    }
    assert trained == path
    fresh.switch("small")
    ran, restored = fresh.repro("train_medim@medim")
    assert ran == set()
    assert restored == path
    fresh.repro()
    assert fresh.lock() == before
    fresh.switch("other")
    assert fresh.repro("train_medim@medim") == (set(), path)


def test_two_clones_end_with_the_same_lock(finished, tmp_path):
    """Same parameters, data and seed on the same machine: the same bytes of every output."""
    other = new_clone(tmp_path / "a folder of another name", finished.folder)
    other.repro()
    assert other.lock().decode() == finished.lock().decode()
