"""`python -m pipeline.profile NAME` writes params.yaml: profiles/phantom.yaml overlaid with profiles/NAME.yaml.

`phantom` is the base and is copied byte for byte. Another profile holds only what differs. Mappings are merged key by
key, lists and values are replaced, and a mapping marked `!replace` takes the place of the base's whole mapping. A key
that phantom.yaml does not have is an error, but for the names inside FREE and inside `!replace`.
Comments stay; a comment behind an overlay's key replaces the base's. The same profile always gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from pipeline.params_file import PARAMS, ParamsError, nearest, read_yaml
from pipeline.paths import PROFILES

BASE = "phantom"
# Mappings whose keys are names that a profile may choose; by their last key, or by all.
FREE = ("datasets", "variants", "sampler_of_model", "mixes", "train_baseline.settings")
REPLACE = "!replace"


def profiles(folder: Path = PROFILES) -> list[str]:
    """Names of the profiles there are."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def render(name: str, folder: Path = PROFILES) -> str:
    """The text of params.yaml for a profile.

    Raises:
        ParamsError: no such profile (lists those there are), an unknown key, a `profile:` that is not the file's name,
            or an anchor in the base (an overlay would change every place that uses it).
    """
    if name not in profiles(folder):
        raise ParamsError(
            f"no profile {name!r} in {folder}{nearest(name, profiles(folder))}; there are {', '.join(profiles(folder))}"
        )
    text = (folder / f"{BASE}.yaml").read_text(encoding="utf-8")
    if name == BASE:
        return text
    yaml = _yaml()
    base, overlay = yaml.load(text), yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    _refuse_anchors(text, folder / f"{BASE}.yaml")
    if overlay.get("profile") != name:
        raise ParamsError(f"{folder / name}.yaml: profile must be {name!r}, got {overlay.get('profile')!r}")
    _merge(base, overlay, f"{folder / name}.yaml", ())
    out = io.StringIO()
    yaml.dump(base, out)
    head = f"# {BASE}.yaml overlaid with {name}.yaml, written by: python -m pipeline.profile {name}\n"
    return head + out.getvalue().rstrip("\n") + "\n"


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt")
    yaml.width = 10_000  # never wrap a line
    yaml.preserve_quotes = True
    return yaml


def _refuse_anchors(text: str, path: Path) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.events import AliasEvent

    if any(isinstance(event, AliasEvent) for event in YAML().parse(text)):
        raise ParamsError(f"{path}: write values out instead of anchors; an overlay would change every place at once")


def _merge(base: Any, overlay: Any, file: str, place: tuple[str, ...]) -> None:
    """Lay the mapping `overlay` over `base`, in place."""
    from ruamel.yaml.comments import CommentedMap

    for key, value in overlay.items():
        here = (*place, str(key))
        if key not in base and not {*place[-1:], ".".join(place)} & {*FREE}:
            raise ParamsError(f"{file}: {BASE}.yaml has no {'.'.join(here)}{nearest(str(key), map(str, base))}")
        old = base.get(key)
        replace = isinstance(value, CommentedMap) and value.tag.value == REPLACE
        if isinstance(value, CommentedMap) and isinstance(old, CommentedMap) and not replace:
            _merge(old, value, file, here)
            continue
        if key in base and isinstance(value, CommentedMap) != isinstance(old, CommentedMap):
            raise ParamsError(f"{file}: {'.'.join(here)} is a mapping in one file and a value in the other")
        if replace:
            value.yaml_set_ctag(_no_tag())
        base[key] = value
        if key in overlay.ca.items:
            base.ca.items[key] = overlay.ca.items[key]


def _no_tag() -> Any:
    from ruamel.yaml.tag import Tag

    return Tag(suffix="tag:yaml.org,2002:map")


def write_profile(name: str, out: Path = PARAMS, folder: Path = PROFILES) -> None:
    """Write params.yaml for a profile; it appears whole or not at all."""
    text = render(name, folder)
    partial = out.with_name(f"{out.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.profile", description="Write params.yaml for a profile.")
    parser.add_argument("name", help=", ".join(profiles()))
    name = parser.parse_args().name
    try:
        write_profile(name)
    except ParamsError as error:
        parser.exit(2, f"{error}\n")
    source = Path(read_yaml(PARAMS)["prepare_data"]["source"])
    if not source.exists():
        print(f"{PARAMS}: profile {name}; next: place your data at {source} (docs/data.md), then .venv/bin/dvc repro")
    else:
        print(f"{PARAMS}: profile {name}; next: .venv/bin/dvc repro")


if __name__ == "__main__":
    main()
