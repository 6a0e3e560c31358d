"""Every key of params.yaml says beside it what it is: unit, range or source."""

import re
from pathlib import Path

import pytest

from pipeline.profile import render

ROOT = Path(__file__).parents[2]

KEY = re.compile(r"^(\s*)(?:- )?([\w.]+):(.*)$")
NAMED = ("mixes", "changes", "sampler_of_model", "datasets")  # hold names; what an entry is stands at their own line


def keys(text):
    """(dotted name, parent's name, what stands behind the colon) of every key."""
    stack = []
    for line in text.splitlines():
        match = KEY.match(line)
        if match is None:
            continue
        while stack and stack[-1][0] >= len(match[1]):
            stack.pop()
        parent = stack[-1][1] if stack else ""
        stack.append((len(match[1]), match[2]))
        yield ".".join(name for _, name in stack), parent, match[3].strip()


def keys_without_comment(text):
    """Dotted names of the keys that have a value and no comment on their line."""
    return [
        name
        for name, parent, value in keys(text)
        if value and "#" not in value and parent not in NAMED and not name.endswith("what")  # `what` is for people
    ]


@pytest.mark.parametrize("name", ["phantom", "phantom-full"])
def test_every_key_has_a_comment(name):
    assert keys_without_comment(render(name)) == []


def test_a_key_without_one_is_found():
    text = "a:\n  b: 1  # pairs\n  c: 2\nmixes:  # name -> pairs\n  real: {x: 1}\nd: 3\n"
    assert keys_without_comment(text) == ["a.c", "d"]


def trainings_without_source(text):
    """Dotted names of the blocks `optim` (rates, steps) whose line does not say where their values come from."""
    blocks = [(name, value) for name, _, value in keys(text) if name.endswith(".optim") and value[:1] in ("", "#")]
    return [name for name, value in blocks if not re.search(r"docs/|ours|published", value)]


@pytest.mark.parametrize("name", ["phantom", "phantom-full"])
def test_every_training_says_where_its_rates_and_steps_come_from(name):
    text = render(name)
    assert trainings_without_source(text) == [] and text.count(" optim:") > 8
    assert trainings_without_source(re.sub(r"(  optim:) +#.*", r"\1", text)) != []


def test_sections_of_the_study_that_are_named_are_there():
    study = (ROOT / "docs/study.md").read_text()
    named = re.findall(r"docs/study\.md, ([^\n]*)", render("phantom-full"))
    titles = [title for line in named for title in re.findall(r'"([^"]+)"', line)]
    assert len(titles) > 10
    assert [title for title in titles if title not in study] == []
