"""`python -m pipeline.publish` copies the active world's results to docs/results/<world>/ and into README.md.

Only committed code can publish. Each row keeps the hashes of the code, params and data that made it, so rows made at
different times can stand in one table; one that this commit would make differently is marked stale.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.code_hash import instances
from pipeline.params_file import PARAMS, ParamsError, load_top, parse_yaml, read_yaml
from pipeline.paths import DVC_LOCK, DVC_YAML, README, RESULTS, World, world_from_params
from pipeline.profile import profiles, render
from pipeline.publish_provenance import (
    Lock,
    Origin,
    PublishError,
    around_results,
    commit_of_clean_tree,
    machine,
    stale,
    versions,
)
from pipeline.row_costs import BESIDE, COSTS, append_costs, costs_of_rows, read_costs
from pipeline.stage_records import bring_back

FIGURE_BYTES = 1_500_000  # largest picture that git should carry
TABLE_FORMATS = (".json", ".md", ".csv", ".html")
SHOWN = ("figures/samples_medim/medim-*.png", "figures/vqgan.png")  # in the README itself, two beside each other
FURTHER = dict.fromkeys(("pretraining_examples", "pretraining_seconds"))  # few stages have a prior


def publish() -> Path:
    """Publish the active world; returns its folder under docs/results/.

    Raises:
        PublishError: something is not committed, there are no tables, a file is not the one dvc.lock knows, or a figure
            is too large.
    """
    commit = commit_of_clean_tree()
    world, params = world_from_params(), read_yaml(PARAMS)
    if not any(world.tables().glob("*.json")):
        raise PublishError(f"{world.tables()} holds no tables: run `dvc repro` first")
    readme = around_results(README.read_text(encoding="utf-8")) if README.is_file() else None
    lock = Lock(read_yaml(DVC_LOCK)["stages"])
    bring_back(world)
    out = world.results()
    copy_tables(world, out / "tables")
    copy_mission(world, out / "mission.json")
    copy_figures(world, out / "figures")
    publish_rows(world, lock, params, commit, out)
    publish_reports(world, out / "reports")
    costs = publish_costs(world, out / "costs.json")
    append_row_costs(out, costs)
    write_provenance(out / "provenance.json", commit, costs)
    if readme is not None:
        README.write_text(readme[0] + results_text(RESULTS) + readme[1], encoding="utf-8")
    return out


def copy_tables(world: World, out: Path) -> None:
    """Copy every table in its four formats; what the world has no more goes."""
    mirror([p for p in sorted(world.tables().glob("*")) if p.suffix in TABLE_FORMATS], out, world.tables())


def copy_mission(world: World, out: Path) -> None:
    """Copy the table that says what is promised and reached to where it is found first; without one it goes."""
    mission = world.tables() / "mission.json"
    out.unlink(missing_ok=True)
    if mission.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(mission, out)


def copy_figures(world: World, out: Path) -> None:
    """Copy the PNG figures.

    Raises:
        PublishError: one is larger than FIGURE_BYTES.
    """
    figures = sorted(world.figures().rglob("*.png"))
    for figure in figures:
        if figure.stat().st_size > FIGURE_BYTES:
            raise PublishError(f"{figure} has {figure.stat().st_size} bytes, more than {FIGURE_BYTES}: draw it smaller")
    mirror(figures, out, world.figures())


def mirror(files: Iterable[Path], out: Path, root: Path) -> None:
    """Make `out` hold copies of exactly these files, in the folders that they have under `root`."""
    wanted = {out / file.relative_to(root): file for file in files}
    for old in [path for path in out.rglob("*") if path.is_file() and path not in wanted]:
        old.unlink()
    for target, file in wanted.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def publish_rows(world: World, lock: Lock, params: Mapping[str, Any], commit: str, out: Path) -> None:
    """Write rows/<model>.json for every measured model, and judge anew the rows published earlier.

    A row keeps the commit that published it first while its numbers, and code and parameters of the stage that measured
    them, are the same: stages before it may have been run again, and given the same files.

    Raises:
        PublishError: a metrics file is not the one that dvc.lock recorded.
    """
    for path in sorted((world.root / "metrics").glob("*.json")):
        origin, made = lock.origin(path, world), lock.maker(path.as_posix())
        if origin is None or made is None:
            print(f"{path}: not in dvc.lock, its row stays as published before", file=sys.stderr)
            continue
        if made[1]["path"] == path.as_posix() and made[1]["md5"] != _md5(path):
            raise PublishError(f"{path} is not what dvc.lock recorded: run `dvc repro {made[0]}`")
        row = json.loads(path.read_text(encoding="utf-8")) | {"profile": params["profile"], "hashes": asdict(origin)}
        target = out / "rows" / path.name
        before = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        write_json(target, row | {"commit": before["commit"] if _measured_before(row, before, made[0]) else commit})
    for path in sorted((out / "rows").glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, row | {"stale": stale(Origin(**row["hashes"]), lock, params)})


def _measured_before(row: Mapping[str, Any], before: Mapping[str, Any], stage: str) -> bool:
    """Whether a row is the one published before, by its numbers and by what measured them."""

    def by(one: Mapping[str, Any]) -> list[Any]:
        numbers = {key: value for key, value in one.items() if key not in ("commit", "stale", "hashes")}
        return [numbers, *(one.get("hashes", {}).get(kind, {}).get(stage) for kind in ("code", "params"))]

    return by(row) == by(before)


def publish_reports(world: World, out: Path) -> None:
    """Write predicted reports, <model>/<dataset>.jsonl, and what they are judged by, references/<dataset>.jsonl."""
    datasets: set[str] = set()
    for path in sorted((world.root / "generated").glob("*/*/image_to_report.parquet")):
        model, dataset = path.parts[-3], path.parts[-2]
        datasets.add(dataset)
        write_lines(out / model / f"{dataset}.jsonl", read_columns(path, ["row", "pair_id", "seed", "report"]))
    for dataset in sorted(datasets):
        pairs = world.pairs(dataset, "test")
        write_lines(
            out / "references" / f"{dataset}.jsonl", read_columns(pairs, ["pair_id", "prompt", "report", "findings"])
        )


def read_columns(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of a Parquet file.

    Raises:
        PublishError: a column is missing.
    """
    from pyarrow import parquet

    missing = sorted(set(columns) - set(parquet.read_schema(path).names))
    if missing:
        raise PublishError(f"{path} has no column {missing}")
    rows: list[dict[str, Any]] = parquet.read_table(path, columns=columns).to_pylist()
    return rows


def publish_costs(world: World, path: Path) -> list[dict[str, Any]]:
    """Write costs.json: this world's costs, those published before where an instance was not run here."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    known = {
        cost["instance"]: {key: (FURTHER | cost)[key] for key in ("instance", *COSTS)}
        for cost in (*before, *read_costs(world.root / "costs").values())
    }
    graphs = profile_graphs(world)
    costs = [
        known[name] | {"profiles": [profile for profile, graph in graphs.items() if name in graph]}
        for name in sorted(known)
    ]
    write_json(path, costs)
    path.with_suffix(".md").write_text(costs_text(costs), encoding="utf-8")
    return costs


def append_row_costs(out: Path, costs: Iterable[Mapping[str, Any]]) -> None:
    """Write under each published table what its rows were given."""
    files = sorted((out / "rows").glob("*.json"))
    rows = {path.stem: list(json.loads(path.read_text(encoding="utf-8")).get("rows", {})) for path in files}
    of_rows = costs_of_rows({cost["instance"]: cost for cost in costs}, rows)
    for table in BESIDE:
        if (path := out / "tables" / f"{table}.json").is_file():
            append_costs(path, of_rows)


def costs_text(costs: Iterable[Mapping[str, Any]]) -> str:
    """Markdown table of what every stage instance took: minutes, pairs seen, parameters, memory."""
    head = ("stage", "minutes", "examples seen", "of a prior before", "parameters", "memory of one process at most, GB")
    lines = ["# What the stages took", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cost in costs:
        numbers = (cost["examples"], cost["pretraining_examples"], cost["parameters"])
        cells = (
            f"`{cost['instance']}`", f"{cost['seconds'] / 60:.1f}", *("" if n is None else f"{n:,}" for n in numbers),
            f"{cost['peak_bytes'] / 1e9:.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def profile_graphs(world: World) -> dict[str, set[str]]:
    """Profile -> names of its stage instances, for the profiles of this world."""
    dvc = read_yaml(DVC_YAML)
    texts = {name: parse_yaml(render(name), name) for name in profiles()}
    return {
        name: {one.name for one in instances(dvc, params)}
        for name, params in texts.items()
        if params["world"] == world.name
    }


def write_provenance(path: Path, commit: str, costs: Iterable[Mapping[str, Any]]) -> None:
    """Write commit, machine, versions and total time."""
    top = load_top()
    facts = {
        "commit": commit,
        "profile": top.profile,
        "world": top.world,
        "seed": top.seed,
        "threads": top.threads,
        "total_seconds": round(sum(cost["seconds"] for cost in costs), 1),
        "machine": machine(),
        "versions": versions(),
    }
    write_json(path, facts)


def results_text(results: Path) -> str:
    """README's block: per published world its main table, main figures, links to the others, machine, stale rows."""
    folders = [folder for folder in sorted(results.glob("*")) if (folder / "provenance.json").is_file()]
    folders.sort(key=lambda folder: (folder.name != "phantom", folder.name))
    return "\n" + "\n".join(_world_text(folder) for folder in folders)


def _world_text(folder: Path) -> str:
    facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    rows = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "rows").glob("*.json"))
    }
    where = facts["machine"]
    device = where["gpu"] or f"{where['cores']} cores of {where['processor']}"
    hours = facts["total_seconds"] / 3600
    made = f"Commit {facts['commit'][:10]}, {device}, {hours:.1f} hours of stages (of all rows together)."
    parts = [f"### World `{facts['world']}`", made]
    main = folder / "tables" / "mission.md"
    parts += [main.read_text(encoding="utf-8").strip().replace("# ", "#### ", 1)] if main.is_file() else []
    others = [path for path in sorted((folder / "tables").glob("*.md")) if path != main]
    titles = [(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["title"], path) for path in others]
    costs = folder / "costs.md"
    titles += [("minutes, examples, parameters and memory of every stage", costs)] if costs.is_file() else []
    shown = [path for pattern in SHOWN for path in sorted(folder.glob(pattern)) if "_ood" not in path.name]
    rest = [path for path in sorted((folder / "figures").rglob("*.png")) if path not in shown]
    parts += ["Tables: " + _links(titles)] if titles else []
    parts += [_picture(path) for path in shown if path.parent.name == "figures"]
    parts += [_folded(f"Sheet: {path.stem}", _picture(path)) for path in shown if path.parent.name != "figures"]
    parts += [_folded("More figures", _listed(rest, folder / "figures"))] if rest else []
    old = [f"- `{name}` is stale: {', '.join(row['stale'])}" for name, row in rows.items() if row["stale"]]
    parts += [_folded(f"Rows that commit {facts['commit'][:10]} would make differently", "\n".join(old))] if old else []
    return "\n\n".join(parts) + "\n"


def _folded(title: str, text: str) -> str:
    """Shown when the reader asks for it."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _picture(path: Path) -> str:
    return f'<img src="{path.as_posix()}" alt="{path.stem}" width="100%">'


def _listed(pictures: Iterable[Path], root: Path) -> str:
    """A line of links a folder under `root`."""
    folders: dict[str, list[Path]] = {}
    for path in pictures:
        folders.setdefault(path.parent.relative_to(root).as_posix(), []).append(path)
    lines = [(name, _links((path.stem, path) for path in found)) for name, found in folders.items()]
    return "\n".join(f"- {links}" if name == "." else f"- {name}: {links}" for name, links in lines)


def _links(named: Iterable[tuple[str, Path]]) -> str:
    return ", ".join(f"[{name}]({path.as_posix()})" for name, path in named)


def write_json(path: Path, data: Any) -> None:
    """JSON with sorted keys: the same data, the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()  # DVC's hash


def main() -> int:
    """Command line."""
    argparse.ArgumentParser(prog="python -m pipeline.publish", description=__doc__).parse_args()
    try:
        print(f"published to {publish()}; next: git add {RESULTS} {README} && git commit")
    except (PublishError, ParamsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
