"""Lazy registry of baselines: a method's file is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medim.baselines.base import Method

METHODS = ("trivial", "unidisc", "r2gen", "r2gen_cmn", "bllm", "blip", "llava_rad")


def get_method(key: str) -> Method:
    """METHOD of medim/baselines/<key>.py.

    Raises:
        KeyError: no such method.
    """
    if key not in METHODS:
        raise KeyError(f"no method {key!r} in medim/baselines; there are {', '.join(METHODS)}")
    method: Method = import_module(f"medim.baselines.{key}").METHOD
    return method
