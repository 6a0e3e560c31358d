"""prefect.yaml, prefect.toml, pyproject.toml and the flows say the same; templates of other pools are whole."""

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from prefect.types.names import raise_on_name_alphanumeric_dashes_only

from flows.deployments import deployments
from flows.flow_report import artifact_key
from flows.prefect_plugin import complete, is_about_a_deployment
from medim.tables import TABLES

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = deployments(ROOT / "prefect.yaml")
NAMES = [one.name for one in DEPLOYMENTS]


def constants(path):
    """Names and literal values at the top of a file."""
    tree = ast.parse(path.read_text())
    return {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)}


def function_of(deployment):
    file, _, name = deployment.entrypoint.partition(":")
    nodes = ast.parse((ROOT / file).read_text()).body
    return next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == name)


def test_there_are_the_two_deployments():
    assert NAMES == ["downstream-augmentation", "paper-tables"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=NAMES)
def test_a_deployment_has_the_name_of_its_flow_and_a_value_for_every_parameter(deployment):
    values, function = constants(ROOT / deployment.entrypoint.partition(":")[0]), function_of(deployment)
    assert values["NAME"] == deployment.name
    assert [ast.unparse(one) for one in function.decorator_list] == ["flow(name=NAME)"]
    assert list(deployment.parameters) == [argument.arg for argument in function.args.args]
    assert not function.args.defaults, "values stand in prefect.yaml"
    assert set(values["TABLES"]) <= {table.id for table in TABLES}


def test_every_table_is_shown_by_one_of_the_flows():
    shown = [table for one in DEPLOYMENTS for table in constants(ROOT / one.entrypoint.partition(":")[0])["TABLES"]]
    assert {*shown} == {table.id for table in TABLES}
    for one in DEPLOYMENTS:
        for table in constants(ROOT / one.entrypoint.partition(":")[0])["TABLES"]:
            raise_on_name_alphanumeric_dashes_only(artifact_key(one.name, table), "key")  # as Prefect does


def test_the_plugin_is_registered_and_switched_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (name,) = project["entry-points"]["prefect.plugins"]
    settings = tomllib.loads((ROOT / "prefect.toml").read_text())
    assert settings["plugins"] == {"enabled": True, "allow": name}
    assert project["entry-points"]["prefect.plugins"][name] == "flows.prefect_plugin"
    assert settings["server"]["analytics_enabled"] is False and "127.0.0.1" in settings["api"]["url"]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("run downstream-augmentation", "run downstream-augmentation/downstream-augmentation"),
        ("run paper-tables --watch", "run paper-tables/paper-tables --watch"),
        ("run --watch paper-tables", "run --watch paper-tables/paper-tables"),
        ("run --param retries=3 paper-tables", "run --param retries=3 paper-tables/paper-tables"),
        ("run --tag paper-tables paper-tables", "run --tag paper-tables paper-tables/paper-tables"),
        ("run --params={} paper-tables", "run --params={} paper-tables/paper-tables"),
        ("run paper-tables/paper-tables", "run paper-tables/paper-tables"),
        ("run other/flow --watch", "run other/flow --watch"),
        ("run --id 7f", "run --id 7f"),
        ("inspect paper-tables", "inspect paper-tables/paper-tables"),
    ],
)
def test_a_name_without_a_slash_is_completed(words, completed):
    argv = ["/x/prefect", "deployment", *words.split()]
    assert is_about_a_deployment(argv)
    assert complete(argv, NAMES) == ["/x/prefect", "deployment", *completed.split()]


@pytest.mark.parametrize("first", ["--no-prompt", "--profile local", "--profile=local", "--prompt --profile local"])
def test_options_of_prefect_itself_may_stand_first(first):
    argv = ["prefect", *first.split(), "deployment", "run", "paper-tables", "--watch"]
    assert is_about_a_deployment(argv)
    assert complete(argv, NAMES) == [*argv[:-2], "paper-tables/paper-tables", "--watch"]


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(
        SystemExit, match=r"no deployment 'paper-table' \(did you mean 'paper-tables'\?\); there are down"
    ):
        complete(["prefect", "deployment", "run", "paper-table"], NAMES)


@pytest.mark.parametrize(
    "words",
    ["deployment ls", "flow-run ls", "deployment schedule ls x", "deploy --all", "deployment run", "--help", ""],
)
def test_other_commands_are_left_alone(words):
    assert not is_about_a_deployment(["prefect", *words.split()])


def placeholders(node):
    """Names in all `{{ name }}` of a template."""
    if isinstance(node, dict):
        return {name for value in node.values() for name in placeholders(value)}
    if isinstance(node, list):
        return {name for value in node for name in placeholders(value)}
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", node)) if isinstance(node, str) else set()


def test_the_kubernetes_template_declares_what_it_uses_and_uses_what_it_declares():
    template = json.loads((ROOT / "flows/pools/kubernetes.json").read_text())
    assert placeholders(template["job_configuration"]) == set(template["variables"]["properties"])
    spec = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}
    assert "nvidia.com/gpu" in container["resources"]["limits"]


def test_the_slurm_template_is_a_shell_script_with_a_signal_for_the_end_of_the_allocation():
    path = ROOT / "flows/pools/slurm.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", path.read_text(), re.MULTILINE))
    assert {"gres", "time", "signal", "cpus-per-task"} <= set(options)
