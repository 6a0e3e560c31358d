"""Reads params.yaml strictly: a key that nothing reads is an error, and so is one that is missing.

Scalars are read as YAML 1.2 has them, as DVC does: `1e-4` is a number, `no` is a string. A section is validated by a
pydantic model that has no defaults; the values stand in params.yaml and nowhere else.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import yaml

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

    Model = TypeVar("Model", bound=BaseModel)

PARAMS = Path("params.yaml")
WORLD_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
FLOAT = re.compile(
    r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


class ParamsError(ValueError):
    """params.yaml is not what the code reads; the message names file, section, key and the nearest name."""


@dataclass(frozen=True)
class Top:
    """The parameters outside the sections."""

    profile: str  # name of profiles/<profile>.yaml that wrote params.yaml
    world: str  # folder under runs/
    seed: int  # of everything random; >= 0
    threads: int  # of torch and BLAS; >= 1


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, ten times as fast


class _Loader(_Base):  # type: ignore[misc]
    """SafeLoader with YAML 1.2's numbers and booleans, and with an error for a key that stands twice."""


_CHANGED = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag not in _CHANGED]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
    repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
    if repeated:
        raise yaml.constructor.ConstructorError(None, None, f"a key stands twice: {repeated}", node.start_mark)
    loader.flatten_mapping(node)
    return dict(loader.construct_mapping(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_repeats)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """YAML text -> mapping; `name` (the file) stands in errors.

    Raises:
        ParamsError: not YAML, a key stands twice, or the document is no mapping.
    """
    return copy.deepcopy(_parsed(text, name))


@lru_cache(maxsize=32)
def _parsed(text: str, name: str) -> dict[str, Any]:
    """A stage reads several sections of one file; the file is parsed once."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ParamsError(f"{name}: {error}") from error
    if not isinstance(data, dict):
        raise ParamsError(f"{name}: expected a mapping, got {type(data).__name__}")
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        FileNotFoundError: names the file and the command that writes params.yaml.
        ParamsError: see `parse_yaml`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run `.venv/bin/python -m pipeline.profile phantom` in the root")
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def nearest(name: str, names: Iterable[str]) -> str:
    """`" (did you mean 'steps'?)"`, or an empty text where nothing is near."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def load_top(path: Path = PARAMS) -> Top:
    """The top-level parameters.

    Raises:
        ParamsError: one is missing, of the wrong type or out of range.
    """
    data = read_yaml(path)
    expected = {"profile": str, "world": str, "seed": int, "threads": int}
    for key, kind in expected.items():
        if key not in data:
            raise ParamsError(f"{path}: not set: {key!r}{_instead(key, data)}")
        if type(data[key]) is not kind:
            raise ParamsError(f"{path}: {key} must be {kind.__name__}, got {data[key]!r}")
    top = Top(**{key: data[key] for key in expected})
    if not WORLD_NAME.fullmatch(top.world):
        raise ParamsError(f"{path}: world must be a folder name of a-z, 0-9, _ and -, got {top.world!r}")
    if top.seed < 0 or top.threads < 1:
        raise ParamsError(f"{path}: seed must be >= 0 and threads >= 1, got {top.seed} and {top.threads}")
    return top


def _instead(key: str, data: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(key, list(data), n=1, cutoff=0.6)
    return f" (found {found[0]!r} instead)" if found else ""


def load_section(model: type[Model], section: str, path: Path = PARAMS) -> Model:
    """One section of params.yaml (`train_medim`, or a part of it: `train_medim.settings.backbone`) as `model`.

    Every key is read and every key there.

    Types are strict: `"5"` is no number and `true` no integer; lists become tuples and texts become paths where the
    model says so.

    Raises:
        TypeError: the model has a default or lets unknown keys pass.
        ParamsError: the section is missing or does not fit; names file, section, keys and the nearest names.
    """
    check_schema(model)
    return validated(model, _section_of(read_yaml(path), section, path), f"{path}:{section}")


def validated(model: type[Model], values: Mapping[str, Any], place: str) -> Model:
    """Values as `model`, strictly; `place` stands in errors.

    Raises:
        ParamsError: see `load_section`.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ParamsError(f"{place}: {'; '.join(_complaints(model, error))}") from None


def _section_of(data: dict[str, Any], section: str, path: Path) -> dict[str, Any]:
    """The mapping at a dotted place."""
    node: Any = data
    for key in section.split("."):
        if not isinstance(node, dict) or key not in node:
            raise ParamsError(f"{path}: no section {section!r}{nearest(key, node if isinstance(node, dict) else ())}")
        node = node[key]
    if not isinstance(node, dict):
        raise ParamsError(f"{path}:{section}: expected a mapping, got {node!r}")
    return node


def check_schema(model: type[BaseModel]) -> None:
    """Hold a section model, and all models inside it, to the rules of this page.

    Raises:
        TypeError: a field has a default, or extra keys are not forbidden.
    """
    for inner in models_in(model):
        if inner.model_config.get("extra") != "forbid":
            raise TypeError(f"{inner.__name__} must have model_config = ConfigDict(extra='forbid')")
        defaults = [name for name, field in inner.model_fields.items() if not field.is_required()]
        if defaults:
            raise TypeError(f"{inner.__name__} has defaults for {defaults}; values stand in params.yaml only")


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every pydantic model in a type: itself, its fields, items of lists, values of mappings, members of unions."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    elif get_origin(annotation) is not None:
        for part in get_args(annotation):
            yield from models_in(part)


def _complaints(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Unknown keys first (each with the nearest name), then missing ones, then wrong values."""
    unknown: list[tuple[str, ...]] = []
    missing: list[tuple[str, ...]] = []
    wrong: list[str] = []
    for item in error.errors(include_url=False):
        place = tuple(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            unknown.append(place)
        elif item["type"] == "missing":
            missing.append(place)
        else:
            wrong.append(f"{'.'.join(place)}: {item['msg']}, got {item['input']!r}")
    texts: list[str] = []
    if unknown:
        hints = "".join(_hint(model, place, missing) for place in unknown)
        texts.append(f"nothing reads {['.'.join(place) for place in unknown]}{hints}")
    if missing:
        texts.append(f"not set: {['.'.join(place) for place in missing]}")
    return texts + wrong


def _hint(model: type[BaseModel], place: tuple[str, ...], missing: list[tuple[str, ...]]) -> str:
    siblings = [other[-1] for other in missing if other[:-1] == place[:-1]]
    every = sorted({name for inner in models_in(model) for name in inner.model_fields})
    return nearest(place[-1], siblings) or nearest(place[-1], every)
