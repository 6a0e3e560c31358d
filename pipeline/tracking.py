"""`python -m pipeline.tracking sync`: MLflow shows what the files under runs/ say.

Idempotent: run it as often as you like; a deleted or empty database is filled again. Addresses are printed at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from pipeline.model_registry import show_model
from pipeline.paths import World, worlds
from pipeline.repro_record import repros
from pipeline.stage_records import bring_back
from pipeline.tracking_repros import show_repros
from pipeline.tracking_store import StoreError, digest, locked_store, pages
from pipeline.tracking_tables import Shown, show_figures, show_table, show_trainings

TABLE_ORDER = ("mission", "vqgan", "report_errors", *(f"table{n}" for n in range(1, 8)))


def sync(chosen: Sequence[World] | None = None) -> list[Shown]:
    """Bring MLflow to the state of the files, and leave a receipt per world.

    Curves and costs are first brought to the outputs in place, which DVC may have taken from its cache.

    Args:
        chosen: the worlds; None for all there are.

    Raises:
        StoreError: the store does not open; the message says what to do.
    """
    shown: list[Shown] = []
    with locked_store() as client:
        for world in worlds() if chosen is None else chosen:
            bring_back(world)
            repro = show_repros(client, world)
            marks = repro.marks if repro is not None and is_of_repro(world) else None
            files = [world.table(name) for name in TABLE_ORDER]
            files += sorted(set(world.tables().glob("*.json")) - set(files))
            shown += [show_table(client, world, path, marks) for path in files if path.is_file()]
            others = (show_trainings(client, world), show_figures(client, world))
            shown += [one for one in others if one is not None]
            if repro is not None:
                model = show_model(client, world, repro)
                shown += [repro.shown] if model is None else [repro.shown, model]
            write_receipt(world)
    return shown


def is_of_repro(world: World) -> bool:
    """Whether the tables are those of the last repro that was recorded, or from before it: none is recorded of a graph
    that has not run whole."""
    recorded = repros(world)[-1].stat().st_mtime_ns
    return all(path.stat().st_mtime_ns <= recorded for path in world.tables().glob("*.json"))


def write_receipt(world: World) -> None:
    """A hash of the world's tables and figures, the same on every machine (costs and curves are left out for that)."""
    files = [
        path for folder in (world.tables(), world.figures()) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    parts = [part for path in files for part in (path.relative_to(world.root).as_posix().encode(), path.read_bytes())]
    world.receipt().parent.mkdir(parents=True, exist_ok=True)
    world.receipt().write_text(json.dumps({"content": digest(*parts)}) + "\n", encoding="utf-8")


def print_links(shown: Sequence[Shown]) -> None:
    """One line per experiment, then how to start the pages."""
    width = max((len(one.name) for one in shown), default=0)
    for one in shown:
        print(f"{one.name:<{width}}  {'recorded ' if one.changed else 'unchanged'}  {one.address}")
    if not shown:
        print("MLflow: no tables and no trainings under runs/ yet; run `dvc repro`")
    else:
        print(f"pages: {pages()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description="Show runs/ in MLflow.")
    parser.add_argument("command", choices=["sync"])
    parser.add_argument("--world", help="only this world (default: all under runs/)")
    args = parser.parse_args(argv)
    chosen = [world for world in worlds() if args.world in (None, world.name)]
    if args.world is not None and not chosen:
        print(f"no world {args.world!r} under runs/; there are {', '.join(w.name for w in worlds())}", file=sys.stderr)
        return 2
    try:
        print_links(sync(chosen))
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
