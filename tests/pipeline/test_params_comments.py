"""Every key of params.yaml says beside it what it is: unit, range or source."""

import re

import pytest

from pipeline.profile import render

KEY = re.compile(r"^(\s*)(?:- )?([\w.]+):(.*)$")
NAMED = ("mixes", "changes", "sampler_of_model", "datasets")  # hold names; what an entry is stands at their own line


def keys_without_comment(text):
    """Dotted names of the keys that have a value and no comment on their line."""
    stack, found = [], []
    for line in text.splitlines():
        match = KEY.match(line)
        if match is None:
            continue
        indent, key, value = len(match[1]), match[2], match[3].strip()
        while stack and stack[-1][0] >= indent:
            stack.pop()
        parent = stack[-1][1] if stack else ""
        stack.append((indent, key))
        if value and "#" not in value and parent not in NAMED and key != "what":  # `what` is a text for people
            found.append(".".join(name for _, name in stack))
    return found


@pytest.mark.parametrize("name", ["phantom", "phantom-full"])
def test_every_key_has_a_comment(name):
    assert keys_without_comment(render(name)) == []


def test_a_key_without_one_is_found():
    text = "a:\n  b: 1  # pairs\n  c: 2\nmixes:  # name -> pairs\n  real: {x: 1}\nd: 3\n"
    assert keys_without_comment(text) == ["a.c", "d"]
