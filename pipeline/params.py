"""Sections of params.yaml as dataclasses.

A stage says what its section holds with a dataclass whose fields may be medim's own dataclasses, so that a setting is
named in one place: `read_section("train_vqgan", Section)`. `params_file.load_section` checks the values strictly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from pipeline.params_file import PARAMS, ParamsError, load_section, nearest, read_yaml, validated
from pipeline.params_names import check_sections_together
from pipeline.paths import DVC_YAML

Schema = TypeVar("Schema")


def strict_model(schema: type[Any]) -> type[BaseModel]:
    """The pydantic model of a dataclass: the same fields, no defaults, no other keys."""
    hints = get_type_hints(schema)
    fields: dict[str, Any] = {f.name: (_modelled(hints[f.name]), ...) for f in dataclasses.fields(schema)}
    model = create_model(schema.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    return cast("type[BaseModel]", model)


def _modelled(hint: Any) -> Any:
    """A type with every dataclass in it replaced by its model."""
    if dataclasses.is_dataclass(hint):
        return strict_model(cast("type[Any]", hint))
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return Union[tuple(_modelled(part) for part in parts)]  # noqa: UP007 - built from a list
    if origin is tuple:
        return tuple[_modelled(parts[0]), ...]  # type: ignore[misc]
    if origin is list:
        return list[_modelled(parts[0])]  # type: ignore[misc]
    if origin is not None and issubclass(origin, Mapping):
        return dict[str, _modelled(parts[1])]  # type: ignore[misc]
    return hint


def _built(hint: Any, value: Any, place: str) -> Any:
    """A validated plain value as the type says: dictionaries become dataclasses again. `place` stands in errors.

    Raises:
        ParamsError: a dataclass refuses its values (ValueError).
    """
    if dataclasses.is_dataclass(hint):
        kind = cast("type[Any]", hint)
        hints = get_type_hints(kind)
        inside = {name: _built(hints[name], inner, f"{place}.{name}") for name, inner in value.items()}
        return _accepted(lambda: kind(**inside), place)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return None if value is None else _built(_member(parts, value), value, place)
    if origin is tuple:
        return tuple(_built(parts[0], inner, place) for inner in value)
    if origin is list:
        return [_built(parts[0], inner, place) for inner in value]
    if origin is not None and issubclass(origin, Mapping):
        return {name: _built(parts[1], inner, f"{place}.{name}") for name, inner in value.items()}
    return value


def _accepted(build: Callable[[], Any], place: str) -> Any:
    """What `build` makes; the ValueError of a dataclass that checks itself says where it stands."""
    try:
        return build()
    except ValueError as error:
        raise ParamsError(f"{place}: {error}") from error


def _member(parts: tuple[Any, ...], value: Any) -> Any:
    """The member of a union that a value belongs to; dataclasses are told apart by their keys."""
    for part in parts:
        if dataclasses.is_dataclass(part) and isinstance(value, dict):
            if {field.name for field in dataclasses.fields(part)} == set(value):
                return part
        elif part is not NoneType and not dataclasses.is_dataclass(part):
            return part
    raise TypeError(f"no member of {parts} has the keys of {value!r}")


def read_section(section: str, schema: type[Schema], path: Path = PARAMS) -> Schema:
    """One section of params.yaml as `schema`.

    Raises:
        ParamsError: see `params_file.load_section`; or a dataclass refuses its values.
    """
    plain = load_section(strict_model(schema), section, path).model_dump()
    return cast("Schema", _built(schema, plain, f"{path}:{section}"))


def check_sections(path: Path = PARAMS) -> None:
    """Read the section of every stage in dvc.yaml, and the changes of every variant in it; hold them together.

    Raises:
        ParamsError: names section and key; see `read_section`, `changed` and `check_sections_together`.
    """
    sections: dict[str, Any] = {}
    for stage in read_yaml(DVC_YAML)["stages"]:
        section = read_section(stage, import_module(f"stages.{stage}").Section, path)
        sections[stage] = section
        for variant in getattr(section, "variants", ()):
            if variant not in section.changes:
                raise ParamsError(f"{path}:{stage}.changes: not set: {variant!r}{nearest(variant, section.changes)}")
            changed(section, section.changes[variant], f"{stage}.changes.{variant}")
    check_sections_together(sections, path)


def changed(section: Schema, changes: Mapping[str, Any], place: str) -> Schema:
    """`section` with some of its values replaced; `changes` is nested like the section. `place` stands in errors.

    Raises:
        ParamsError: a key that the section does not have, or a value that it refuses.
    """
    kind = type(section)
    hints = get_type_hints(kind)
    new: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in hints:
            raise ParamsError(f"params.yaml:{place}: nothing reads {key!r}{nearest(key, hints)}")
        old = getattr(section, key)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            new[key] = changed(old, value, f"{place}.{key}")
        else:
            new[key] = _replaced(hints[key], key, value, f"params.yaml:{place}")
    return cast("Schema", _accepted(lambda: dataclasses.replace(cast("Any", section), **new), f"params.yaml:{place}"))


def _replaced(hint: Any, key: str, value: Any, place: str) -> Any:
    """One value, as strictly checked as those of a section."""
    fields: dict[str, Any] = {key: (_modelled(hint), ...)}
    model = cast("type[BaseModel]", create_model("Changes", __config__=ConfigDict(extra="forbid"), **fields))
    return _built(hint, validated(model, {key: value}, place).model_dump()[key], f"{place}.{key}")
