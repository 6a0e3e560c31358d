"""dvc.yaml, params.yaml, the profiles and stages/ say the same (law 1 of the architecture)."""

import ast
import re
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from pipeline.code_hash import Sources, closure, instances
from pipeline.params import changed, read_section
from pipeline.params_file import load_top, parse_yaml, read_yaml
from pipeline.profile import profiles, render

ROOT = Path(__file__).parents[1]
DVC = read_yaml(ROOT / "dvc.yaml")
TOP = {"profile", "world", "seed", "threads"}
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
PROFILES = profiles(ROOT / "profiles")
TEXTS = {name: render(name, ROOT / "profiles") for name in PROFILES}
PARAMS = {name: parse_yaml(text, name) for name, text in TEXTS.items()}
# Stages whose bytes cannot depend on the number of threads: they do no arithmetic with tensors.
WITHOUT_THREADS = {"hash_code", "prepare_data", "mix_pairs"}

per_profile = pytest.mark.parametrize("profile", PROFILES)
per_stage = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(scope="module", params=PROFILES)
def params_file(request, tmp_path_factory):
    """params.yaml as a profile writes it."""
    path = tmp_path_factory.mktemp(request.param) / "params.yaml"
    path.write_text(TEXTS[request.param], encoding="utf-8")
    return path


def at(params, place):
    """The value at a dotted place of the parameters."""
    for key in place.split("."):
        assert isinstance(params, dict) and key in params, f"params.yaml has no {place}"
        params = params[key]
    return params


def filled(text, params, items):
    """A text of dvc.yaml with its ${...} replaced."""
    known = {f"item.{key}": value for key, value in items.items()}
    return re.sub(r"\$\{([\w.]+)\}", lambda m: str(known[m[1]] if m[1] in known else at(params, m[1])), text)


def names(entries, params, items):
    """Paths or keys of a list of dvc.yaml, whose entries may be mappings with options."""
    return [filled(next(iter(e)) if isinstance(e, dict) else e, params, items) for e in entries]


def all_instances(params):
    """(instance, body of its stage, its items) of every instance there is with these parameters."""
    return [(i, DVC["stages"][i.stage], dict(i.items)) for i in instances(DVC, params)]


def tree(stage):
    return ast.parse((ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8"))


def sections_read(stage):
    """{dotted place: class} of the `read_section("place", Class)` in a stage."""
    module = import_module(f"stages.{stage}")
    return {
        node.args[0].value: getattr(module, node.args[1].id)
        for node in ast.walk(tree(stage))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "read_section"
        if isinstance(node.args[0], ast.Constant)  # hash_code checks every section, whatever its values
    }


def leaves(value, place):
    """Dotted places of all values below a place."""
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{place}.{key}")]
    return [place]


def below(place, keys):
    """Whether a dotted place is one of the keys or lies inside one."""
    return any(place == key or place.startswith(f"{key}.") for key in keys)


@per_profile
def test_stages_are_those_of_dvc_yaml_and_the_sections_of_params_yaml(profile):
    assert sorted(DVC["stages"]) == STAGES
    assert set(PARAMS[profile]) == {*STAGES, *TOP}


def test_the_committed_parameters_are_the_profile_phantom():
    def staged(path):
        found = subprocess.run(["git", "show", f":{path}"], cwd=ROOT, capture_output=True)
        assert found.returncode == 0, f"{path} is not in git: {found.stderr.decode()}"
        return found.stdout

    if not (ROOT / ".git").exists():
        pytest.skip("no repository: nothing is committed")
    assert staged("params.yaml") == staged("profiles/phantom.yaml"), "run `python -m pipeline.profile phantom`"


def test_drawn_data_depend_on_a_file_that_is_committed():
    assert all((ROOT / PARAMS[name]["prepare_data"]["source"]).is_file() for name in ("phantom", "tiny"))


def test_the_same_profile_gives_the_same_bytes_and_only_its_own_name():
    assert {name: render(name, ROOT / "profiles") for name in PROFILES} == TEXTS
    assert {name: params["profile"] for name, params in PARAMS.items()} == {name: name for name in PROFILES}


@per_stage
def test_every_section_of_every_profile_is_what_its_stage_reads(params_file, stage):
    load_top(params_file)
    read = sections_read(stage)
    assert stage in read, f"stages/{stage}.py never reads its section"
    for place, kind in read.items():
        read_section(place, kind, params_file)


def test_every_variant_changes_settings_that_exist(params_file):
    from stages.train_medim import Section

    section = read_section("train_medim", Section, params_file)
    for variant in section.variants:
        changes = section.changes[variant]
        assert changed(section, changes, f"train_medim.changes.{variant}") == section or changes
    assert set(section.changes) >= set(section.variants)


def test_every_method_has_settings(params_file):
    from medim.baselines import get_method
    from stages.train_baseline import Section

    section = read_section("train_baseline", Section, params_file)
    assert set(section.settings) >= set(section.methods)
    assert [get_method(method).key for method in section.methods] == list(section.methods)


@per_profile
def test_what_answers_is_trained_and_what_is_evaluated_has_answered(profile):
    params = PARAMS[profile]
    trained = [*params["train_medim"]["variants"], *params["train_baseline"]["methods"]]
    assert sorted(params["generate"]["models"]) == sorted(trained)
    assert sorted(params["evaluate"]["models"]) == sorted(params["generate"]["models"])
    downstream = params["train_downstream"]
    assert set(downstream["methods"]) <= set(params["train_baseline"]["methods"])
    assert set(params["synthesize_pairs"]["generators"]) <= set(trained)


def pretrained_on(baselines):
    """Datasets of the first trainings of the methods that a profile trains."""
    found = [baselines["settings"][method].get("pretraining") for method in baselines["methods"]]
    return [name for one in found if one is not None for name in one["datasets"]]


@per_profile
def test_datasets_are_prepared_before_they_are_used(profile):
    params = PARAMS[profile]
    sizes = params["prepare_data"]["datasets"]
    used = {
        "train_vqgan": params["train_vqgan"]["datasets"],
        "evaluate_vqgan": params["evaluate_vqgan"]["datasets"],
        "tokenize_pairs": params["tokenize_pairs"]["datasets"],
        "pretrain_backbone": params["pretrain_backbone"]["datasets"],
        "pretrain_towers": params["pretrain_towers"]["datasets"],
        "train_medim": params["train_medim"]["datasets"],
        "train_baseline": params["train_baseline"]["datasets"],
        "generate": params["generate"]["datasets"],
        "synthesize_pairs": list(params["synthesize_pairs"]["prompts"]),
        "mix_pairs": params["mix_pairs"]["datasets"],
        "evaluate": [*params["evaluate"]["datasets"], *params["evaluate"]["datasets"].values()],
        "pretraining": pretrained_on(params["train_baseline"]),
    }
    missing = {stage: set(datasets) - set(sizes) for stage, datasets in used.items() if set(datasets) - set(sizes)}
    assert not missing
    trained = {*used["pretrain_backbone"], *used["pretrain_towers"], *used["train_medim"]}
    assert trained <= set(used["tokenize_pairs"])
    assert set(params["evaluate"]["datasets"]) == set(used["generate"])


@per_profile
def test_every_stage_depends_on_its_own_code(profile):
    for instance, body, items in all_instances(PARAMS[profile]):
        code = [dep for dep in names(body["deps"], PARAMS[profile], items) if dep.startswith("code/")]
        assert code == ([] if instance.stage == "hash_code" else [f"code/{instance.name}.txt"]), instance.name


@per_profile
def test_the_command_is_the_stage_with_its_items(profile):
    for instance, body, items in all_instances(PARAMS[profile]):
        options = "".join(f" --{key} {value}" for key, value in items.items())
        assert filled(body["cmd"], PARAMS[profile], items) == f"stages/python -m stages.{instance.stage}{options}"


def outputs(params):
    """Path -> names of the instances that write it."""
    found = {}
    for instance, body, items in all_instances(params):
        for kind in ("outs", "metrics", "plots"):
            for path in names(body.get(kind, []), params, items):
                found.setdefault(path, []).append(instance.name)
    return found


@per_profile
def test_outputs_lie_in_the_world_and_have_one_writer(profile):
    world = PARAMS[profile]["world"]
    for path, writers in outputs(PARAMS[profile]).items():
        shared = path == "code" or re.fullmatch(rf"mlflow/receipt-{world}\.json", path)
        assert shared or path.startswith(f"runs/{world}/"), path
        assert len(writers) == 1, f"{path} is written by {writers}"
        assert not below(path.replace("/", "."), [p.replace("/", ".") for p in outputs(PARAMS[profile]) if p != path])
        assert "/costs/" not in path and "/logs/" not in path, "costs and curves differ from run to run"
    for body in DVC["stages"].values():
        for entry in [*body.get("outs", []), *body.get("metrics", [])]:
            # Git does not hold runs/: of what is not cached, `dvc metrics diff` would know no earlier value.
            assert isinstance(entry, str) or "receipt" in str(entry), f"{entry} must be cached"


@per_profile
def test_every_dependency_is_written_by_a_stage_or_committed(profile):
    written = list(outputs(PARAMS[profile]))
    users = PARAMS[profile]["prepare_data"]["source"]  # the user's own files, where a profile imports some
    for instance, body, items in all_instances(PARAMS[profile]):
        for path in names(body["deps"], PARAMS[profile], items):
            made = any(path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/") for out in written)
            assert made or path == users or (ROOT / path).exists(), (
                f"{instance.name} depends on {path}, which no stage writes"
            )


@per_profile
def test_every_tracked_parameter_exists_and_no_list_of_instances_reruns_its_members(profile):
    for instance, body, items in all_instances(PARAMS[profile]):
        tracked = names(body["params"], PARAMS[profile], items)
        for key in tracked:
            at(PARAMS[profile], key)
        assert len(tracked) == len(set(tracked)), instance.name
        for source in body.get("matrix", {}).values():
            assert not below(source.strip("${}"), tracked), f"{instance.name}: one more item would rerun all"


@per_profile
@per_stage
def test_whatever_a_stage_reads_is_tracked(profile, stage):
    params = PARAMS[profile]
    for instance, body, items in all_instances(params):
        if instance.stage != stage:
            continue
        tracked = names(body["params"], params, items)
        lists = [source.strip("${}") for source in body.get("matrix", {}).values()]
        others = [  # settings of other instances: mappings whose keys are those of the stage's matrix
            f"{stage}.{key}.{other}"
            for key, value in params[stage].items()
            if isinstance(value, dict) and set(items.values()) & set(value)
            for other in set(value) - set(items.values())
        ]
        for place in sections_read(stage):
            untracked = [
                leaf for leaf in leaves(at(params, place), place) if not below(leaf, [*tracked, *lists, *others])
            ]
            if place == stage or below(place, tracked):
                assert not untracked, instance.name
            else:  # one value of another stage's section is read from a whole part of it
                assert below_any(tracked, place), f"{instance.name} reads {place} and tracks nothing of it"


def below_any(keys, place):
    """Whether one of the keys lies inside a place."""
    return any(below(key, [place]) for key in keys)


@per_stage
def test_a_stage_that_draws_tracks_the_seed_and_one_that_computes_the_threads(stage):
    source = ast.unparse(tree(stage))
    tracked = DVC["stages"][stage]["params"]
    assert ("seed" in tracked) or "run.seed" not in source
    assert ("threads" in tracked) == (stage not in WITHOUT_THREADS)
    assert ("profile" in tracked) == ("load_top()" in source)


def test_hash_code_runs_again_when_an_instance_joins():
    matrices = {source.strip("${}") for body in DVC["stages"].values() for source in body.get("matrix", {}).values()}
    assert set(DVC["stages"]["hash_code"]["params"]) == {"hash_code", *matrices}
    assert set(DVC["stages"]["hash_code"]["deps"]) == {"medim", "pipeline", "stages"}


@per_profile
def test_the_hashed_code_holds_what_is_loaded_by_name(profile):
    """`load_system` and `get_method` import modules whose names stand in config.json or params.yaml."""
    from medim.baselines import METHODS

    sources = Sources(ROOT)
    for instance, _, items in all_instances(PARAMS[profile]):
        if instance.stage not in ("generate", "train_baseline", "train_downstream", "synthesize_pairs"):
            continue
        item = next(iter(items.values()))
        needed = {f"medim/baselines/{item}.py"} if item in METHODS else {"medim/questions.py", "medim/model.py"}
        files = {path.as_posix() for path in closure(f"stages.{instance.stage}", sources, items.values())}
        assert needed <= files, f"an edit of {sorted(needed - files)} would not rerun {instance.name}"
        other = {f"medim/baselines/{method}.py" for method in METHODS if method != item}
        assert not other & files, f"an edit of another baseline would rerun {instance.name}"


def test_a_graph_stays_small():
    for profile, params in PARAMS.items():
        assert len(instances(DVC, params)) < 100, profile


def test_dvc_reads_the_graph():
    """DVC itself resolves every ${...} of the profile that is active."""
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        found = {stage.addressing for stage in repo.index.stages}
    assert found == {instance.name for instance in instances(DVC, read_yaml(ROOT / "params.yaml"))}
