"""Reads a method's section of params.yaml into its settings: every field is given, and nothing else."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Schema = TypeVar("Schema")


def read_settings(schema: type[Schema], values: Mapping[str, Any], place: str) -> Schema:
    """`values` as the dataclass `schema`, whose fields may be dataclasses, tuples, mappings, scalars or None.

    Args:
        schema: the dataclass.
        values: plain values, as YAML and JSON hold them; a list stands for a tuple, an integer for a float.
        place: where the values stand, for the errors (params.yaml:train_baseline.settings.r2gen).

    Raises:
        ValueError: a key that nothing reads, a missing one, a value of another type, or one that a dataclass refuses.
    """
    hints = get_type_hints(schema)
    names = [field.name for field in dataclasses.fields(cast("Any", schema))]
    unread, missing = [key for key in values if key not in names], [name for name in names if name not in values]
    if unread or missing:
        raise ValueError(f"{place}: nothing reads {unread}{_nearest(unread, names)}; not set: {missing}")
    built = {name: _built(hints[name], values[name], f"{place}.{name}") for name in names}
    try:
        return schema(**built)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _nearest(unread: Iterable[str], names: list[str]) -> str:
    found = [match for key in unread for match in difflib.get_close_matches(key, names, n=1)]
    return f" (did you mean {', '.join(found)}?)" if found else ""


def _built(hint: Any, value: Any, place: str) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        if value is None and NoneType in parts:
            return None
        return _built(next(part for part in parts if part is not NoneType), value, place)
    if dataclasses.is_dataclass(hint):
        return read_settings(cast("type[Any]", hint), _of_type(value, Mapping, place), place)
    if origin is tuple:
        items = enumerate(_of_type(value, list | tuple, place))
        return tuple(_built(parts[0], item, f"{place}[{number}]") for number, item in items)
    if origin is not None:
        return {key: _built(parts[1], item, f"{place}.{key}") for key, item in _of_type(value, Mapping, place).items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _of_type(value, hint, place)


def _of_type(value: Any, kind: Any, place: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        wanted = getattr(kind, "__name__", str(kind))
        raise ValueError(f"{place} must be of type {wanted}, got {value!r}")
    return value
