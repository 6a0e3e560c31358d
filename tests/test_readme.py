"""The README's commands run: each in its cheapest real form, so that the page cannot drift from the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHEAP = {  # a command of the README -> the same with its work left out
    "./setup": None,  # run as it is where it was run before
    ".venv/bin/dvc repro": [str(BIN / "dvc"), "repro", "--dry", "hash_code"],
    ".venv/bin/pytest": [str(BIN / "pytest"), "--collect-only", "-q", "tests/medim/test_vocab.py"],
    ".venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db --port 5000": [
        str(BIN / "mlflow"),
        "ui",
        "--help",
    ],
}


def commands():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]
    return sorted({part.strip() for line in lines for part in line.split("&&")})


def test_every_command_of_the_readme_is_known_here():
    assert set(commands()) == set(CHEAP)


@pytest.mark.parametrize("command", sorted(key for key, cheap in CHEAP.items() if cheap))
def test_the_command_runs(command):
    done = subprocess.run(CHEAP[command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_no_page_asks_for_a_command_that_needs_an_activated_environment(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    code = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) + re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
    parts = [part.strip() for block in code for line in block.splitlines() for part in re.split("&&|[;|]", line)]
    bare = re.compile(r"(?:\w+=\S* +)*(?:python3? |(?:dvc|pytest|mlflow|ruff|mypy|prefect)(?: |$))")
    assert not [part for part in parts if bare.match(part)]


def shell_without_activation():
    """What a user's shell has who never activated the environment: no folder of ours on PATH."""
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != BIN]
    left_out = ("VIRTUAL_ENV", "PYTHONPATH", "CONDA_PREFIX")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    return env | {"PATH": os.pathsep.join(folders), "DVC_NO_ANALYTICS": "1"}


def test_dvc_runs_a_stage_with_the_environment_of_setup_though_it_is_not_activated(tmp_path):
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "dvc.lock")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(BIN.parent)
    env = shell_without_activation() | {"DVC_SITE_CACHE_DIR": str(tmp_path / ".site")}
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([".venv/bin/python", "-m", "pipeline.profile", "tiny"], cwd=tmp_path, check=True, env=env)
    done = subprocess.run(
        [".venv/bin/dvc", "repro", "prepare_data"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/tiny/data/pairs").is_dir()


def said_by_a_stages_python(folder, body, *arguments, **own):
    """What `stages/python` prints where PATH's python is a shell script of this body."""
    fake = folder / "bin/python"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text(f"#!/bin/sh\n{body}\n")
    fake.chmod(0o755)
    env = shell_without_activation()
    env |= {"PATH": f"{fake.parent}{os.pathsep}{env['PATH']}"} | own
    command = [ROOT / "stages/python", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True).stdout


def test_stages_run_with_the_python_on_path_where_setup_made_none(tmp_path):
    assert said_by_a_stages_python(tmp_path, 'echo "PATH: $*"', "-m", "x") == "PATH: -m x\n"


def test_stages_keep_freed_memory_unless_told_otherwise(tmp_path):
    body = 'echo "$GLIBC_TUNABLES"'
    assert said_by_a_stages_python(tmp_path, body).startswith("glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=")
    assert said_by_a_stages_python(tmp_path, body, GLIBC_TUNABLES="a=1") == "a=1\n"


def test_setup_does_nothing_where_nothing_changed():
    stamp = ROOT / ".venv/.medim-stamp"
    if not stamp.is_file():
        pytest.skip("./setup was not run in this checkout")
    subprocess.run(["./setup"], cwd=ROOT, check=True, capture_output=True, timeout=280)  # whatever was edited
    before = stamp.stat().st_mtime_ns
    done = subprocess.run(["./setup"], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and stamp.stat().st_mtime_ns == before


@pytest.fixture
def setup_with_a_fake_uv(tmp_path):
    """A function (torch index) -> what ./setup printed, what it asked uv for; nothing is installed."""
    for name in ("setup", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, tmp_path / name)
    asked = tmp_path / "asked"
    for name, body in ((".venv/bin/python", "exit 0"), ("bin/uv", f'echo "$*" >>"{asked}"')):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)

    def run(index):
        asked.write_text("")
        env = shell_without_activation() | {"PYTHON": sys.executable, "MEDIM_TORCH_INDEX": index}
        env["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{env['PATH']}"
        done = subprocess.run(["./setup"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout, asked.read_text()

    return run


def test_setup_says_that_it_installs_and_changes_pytorch_where_its_index_changed(setup_with_a_fake_uv):
    again = "--reinstall-package=torch --reinstall-package=torchvision"
    said, asked = setup_with_a_fake_uv("")
    assert said.startswith("setup: installing into .venv") and said.count("\n") == 1
    assert asked.startswith("pip install") and again not in asked and "--extra-index-url" not in asked
    assert setup_with_a_fake_uv("") == ("", "")
    said, asked = setup_with_a_fake_uv("http://host/it's cpu")
    assert said.count("\n") == 1 and f"--extra-index-url http://host/it's cpu {again}" in asked
    assert setup_with_a_fake_uv("http://host/it's cpu") == ("", "")
    assert again in setup_with_a_fake_uv("")[1]


def test_every_file_and_picture_that_the_readme_names_is_there():
    named = re.findall(r'\]\(([^)#:]+)\)|src="([^"]+)"', README)
    missing = [name for pair in named for name in pair if name and not (ROOT / name).exists()]
    assert not missing


def test_the_stages_of_the_readme_are_those_of_dvc_yaml():
    import yaml

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    table = README.split("## The path")[1].split("`params.yaml` holds")[0]
    named = {name.split("@")[0] for name in re.findall(r"`([a-z_@-]+)`", table) if name.split("@")[0] in stages}
    assert named == set(stages)
