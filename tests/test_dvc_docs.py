"""Every DVC command on a page is one that DVC takes, names stages and settings that there are, and is tried."""

import re
import shlex
from pathlib import Path

import pytest
from dvc.cli.parser import get_main_parser

from pipeline.code_hash import instances
from pipeline.params_file import read_yaml

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")))
COMMAND = re.compile(r"\.venv/bin/dvc ([^`\n#|&]+)")
WITHOUT_SUBCOMMAND = {"status", "repro", "dag", "push", "pull", "checkout", "gc", "commit"}


def commands(page):
    """Words of each DVC command on a page; `…` stands for the rest of one."""
    found = COMMAND.findall((ROOT / page).read_text(encoding="utf-8"))
    return [shlex.split(text.split("…")[0].rstrip(" -S") if "…" in text else text) for text in found]


def test_commands_are_found():
    assert ["exp", "run", "-S", "train_medim.optim.lr=2e-3", "evaluate@medim"] in commands("docs/dvc.md")
    assert ["exp", "run", "--queue"] in commands("README.md")
    assert len(commands("docs/dvc.md")) > 20


@pytest.mark.parametrize("page", PAGES)
def test_dvc_takes_every_command(page):
    for words in commands(page):
        asked = get_main_parser().parse_args(words)  # exits with 2 where it does not
        assert callable(asked.func), words


@pytest.mark.parametrize("page", PAGES)
def test_stages_and_settings_exist(page):
    params, dvc = read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "dvc.yaml")
    names = {one.name for one in instances(dvc, params)} | set(dvc["stages"])
    for words in commands(page):
        asked = get_main_parser().parse_args(words)
        for setting in getattr(asked, "set_param", None) or ():
            key, _, value = setting.partition("=")
            node = params
            for part in key.split("."):
                node = node[part]
            assert str(node) != value, f"{key} is {value} already"
        if words[0] in ("repro", "exp") and hasattr(asked, "targets"):
            assert set(asked.targets or ()) <= names, words


def test_every_kind_of_command_is_tried_by_a_slow_test():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests/slow").glob("*.py"))
    tried = {tuple(found) for found in re.findall(r'"dvc", "([\w-]+)"(?:, "([\w-]+)")?', tests)}
    both = tried | {(first, "") for first, _ in tried}
    shown = {
        (words[0], "" if words[0] in WITHOUT_SUBCOMMAND else words[1])
        for page in PAGES
        for words in commands(page)
        if not words[0].startswith("-")
    }
    assert shown <= both, sorted(shown - both)
