"""The graph of stage instances, as DVC resolves dvc.yaml: who needs whom, and which of them compute."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flows.dvc_calls import ask
from pipeline.params_file import nearest, read_yaml
from pipeline.paths import DVC_YAML

NODE = re.compile(r'^\s*"([^"]+)"\s*;?\s*$')
EDGE = re.compile(r'^\s*"([^"]+)"\s*->\s*"([^"]+)"\s*;?\s*$')


class GraphError(ValueError):
    """dvc.yaml has not what a flow asks for; the message says what it has."""


@dataclass(frozen=True)
class Graph:
    """Stage instances, by DVC's names (`train_medim@medim`)."""

    above: Mapping[str, frozenset[str]]  # instance -> instances whose outputs it reads
    computing: frozenset[str]  # instances that compute with tensors: each takes a slot while it runs

    def needed(self, targets: Iterable[str]) -> set[str]:
        """The targets and everything that they need, directly or not."""
        return _closure(targets, self.above)

    def followers(self, stages: Iterable[str]) -> set[str]:
        """The stages and everything that needs them, directly or not."""
        return _closure(stages, self._below())

    def ordered(self, stages: Collection[str]) -> list[str]:
        """The stages, each after those that it needs; by name where the graph leaves a choice."""
        left, placed = set(stages), list[str]()
        while left:
            ready = sorted(stage for stage in left if not self.above[stage] & left)
            placed += ready
            left -= set(ready)
        return placed

    def _below(self) -> dict[str, frozenset[str]]:
        below: dict[str, set[str]] = {stage: set() for stage in self.above}
        for stage, needs in self.above.items():
            for need in needs:
                below[need].add(stage)
        return {stage: frozenset(names) for stage, names in below.items()}


def _closure(start: Iterable[str], edges: Mapping[str, frozenset[str]]) -> set[str]:
    seen, todo = set[str](), list(start)
    while todo:
        stage = todo.pop()
        if stage not in seen:
            seen.add(stage)
            todo += edges[stage]
    return seen


def parse_dot(text: str) -> dict[str, frozenset[str]]:
    """What `dvc dag --dot` prints -> instance -> the instances that it needs. Arrows go from need to follower."""
    above: dict[str, set[str]] = {}
    for line in text.splitlines():
        if edge := EDGE.match(line):
            above.setdefault(edge[1], set())
            above.setdefault(edge[2], set()).add(edge[1])
        elif node := NODE.match(line):
            above.setdefault(node[1], set())
    return {stage: frozenset(needs) for stage, needs in above.items()}


def computing_stages(dvc: Mapping[str, Any]) -> set[str]:
    """Stages (names without @) of a dvc.yaml whose parameters hold `threads`: those that compute with tensors."""
    return {name for name, body in dvc["stages"].items() if "threads" in body.get("params", ())}


def read_graph() -> Graph:
    """The graph of the dvc.yaml and params.yaml in this folder.

    Raises:
        DvcError: DVC cannot read them.
    """
    above = parse_dot(ask("dag", "--dot", tries=3))
    computing = computing_stages(read_yaml(DVC_YAML))
    return Graph(above, frozenset(name for name in above if name.partition("@")[0] in computing))


def with_prefix(graph: Graph, prefixes: Iterable[str]) -> list[str]:
    """Instances of the stages whose names begin with one of the prefixes, by name.

    Raises:
        GraphError: a prefix that no stage has.
    """
    found: set[str] = set()
    for prefix in prefixes:
        these = {name for name in graph.above if name.startswith(prefix)}
        if not these:
            stages = sorted({name.partition("@")[0] for name in graph.above})
            raise GraphError(
                f"{DVC_YAML}: no stage instance begins with {prefix!r}{nearest(prefix, stages)}; there are "
                f"{', '.join(stages) or 'none'}. The lists of instances stand in params.yaml, which "
                "`.venv/bin/python -m pipeline.profile NAME` writes"
            )
        found |= these
    return sorted(found)
