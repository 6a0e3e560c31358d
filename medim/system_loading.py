"""Loads the system in a folder by the key "system" of its config.json, so that generation never branches on names.

Apart from systems.py, because whatever imports this file depends on the code of the system that it is asked for.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from medim.systems import System


def load_system(folder: Path, **settings: Any) -> System:
    """The system in a folder; `settings` go to its module's `load_system`.

    Raises:
        FileNotFoundError: no config.json there.
        KeyError: config.json does not say which module made it.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{config} is missing: run `dvc repro` for the stage that trains {folder.name}")
    described = json.loads(config.read_text())
    if "system" not in described:
        raise KeyError(f"{config} has no key 'system' (the module that loads it): train {folder.name} again")
    system: System = import_module(described["system"]).load_system(folder, **settings)
    return system
