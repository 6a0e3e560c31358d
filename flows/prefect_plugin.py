"""Plugin of Prefect: `prefect deployment run NAME` means NAME/NAME in this project.

Prefect's command wants FLOW/DEPLOYMENT. Here every deployment has its flow's name (a test holds prefect.yaml to it), so
a name without a slash has one meaning. The hook is Prefect's public start-up hook: entry point group `prefect.plugins`
in pyproject.toml, switched on by prefect.toml of this folder; it runs before the command reads its arguments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from prefect.plugins import HookContext, register_hook

from flows.deployments import deployments
from flows.server_address import answers
from pipeline.params_file import nearest
from pipeline.paths import PREFECT_YAML

ACTIONS = ("run", "inspect", "delete")
FLAGS = ("--watch",)  # options without a value
FIRST = ("--profile", "-p")  # options of `prefect` itself that have one


def complete(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """The command line of a command about one deployment, its name completed.

    Raises:
        SystemExit: the name is none of prefect.yaml's; says which there are.
    """
    first = (place_of_action(argv) or 0) + 1
    for place in range(first, len(argv)):
        before, word = argv[place - 1], argv[place]
        value = place > first and before.startswith("-") and before not in FLAGS and "=" not in before
        if word.startswith("-") or value:
            continue
        if word in names:
            return [*argv[:place], f"{word}/{word}", *argv[place + 1 :]]
        if "/" not in word:
            sys.exit(f"{PREFECT_YAML} has no deployment {word!r}{nearest(word, names)}; there are {', '.join(names)}")
        break
    return list(argv)


def is_about_a_deployment(argv: Sequence[str]) -> bool:
    """Whether this is `prefect deployment run ...` or another command that takes one deployment's name."""
    place = place_of_action(argv)
    return Path(argv[0]).stem in ("prefect", "__main__") and place is not None and len(argv) > place + 1


def place_of_action(argv: Sequence[str]) -> int | None:
    """Where `run` stands in `prefect [options] deployment run ...`; None where the command is about something else."""
    place = 1
    while place < len(argv) and argv[place].startswith("-"):
        place += 2 if argv[place] in FIRST else 1
    about = argv[place : place + 1] in (["deployment"], ["deployments"])
    return place + 1 if about and place + 1 < len(argv) and argv[place + 1] in ACTIONS else None


@register_hook
def setup_environment(*, ctx: HookContext) -> None:
    """Complete the name; without a server say how to start one (Prefect prints 60 lines of a failed connection)."""
    os.environ["PREFECT_PLUGINS_ENABLED"] = "false"  # once a process tree: not again in the worker's children
    if not is_about_a_deployment(sys.argv) or not PREFECT_YAML.is_file():
        return
    argv = complete(sys.argv, [deployment.name for deployment in deployments()])
    if not answers(ctx.api_url):
        sys.exit(f"no Prefect server answers at {ctx.api_url}: run `.venv/bin/python -m flows.start`")
    sys.argv[:] = argv
