"""Measures findings against the number of network evaluations, on the validation split.

    python -m benchmarks.sampler_evaluations [--world phantom] [--pairs 128] [--panel choice ...] [--quick] [--out DIR]

Starts from the sampler of each task (params.yaml:generate.sampler and sampler_of) and changes one thing at a time:
schedule, order and commit rule, each at 4 to 64 steps (adaptive rules: at several levels), and guidance, temperature
and the choice among several answers, draws or beams at the default number of steps; --panel measures some of these
only. What is measured is the finding F1 (image_to_report: the report against the truth; report_to_image: what the
finding reader sees against the report that was given) and the share of valid sentences. An evaluation is a pass
through the network for one sample, as the model counts it: those of guidance and the one that draws a report's length
are in it.

Reads runs/<world>/models/{medim,vqgan,finding_reader} and data/pairs/<dataset>/val.parquet. Writes
sampler_evaluations.json (settings, hashes, all numbers; `evaluations`, `guidance`, `temperature` and `choice` list the
series) and .png into docs/results/<world>, or with --quick (few points, for tests) into
.work/sampler_evaluations/<world>.

It can be stopped: points that the JSON file holds are not measured again while models, pairs, settings and the code
that generates are the same. The defaults are measured in each run, because seconds are compared within a run only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.sampler_grid import FULL, MODALITY, PANELS, QUICK, Sweep, base_of, name_of, series_of
from benchmarks.sampler_measure import Ground, Record, Wanted, ground_of, measure, measure_all, missing
from benchmarks.sampler_report import draw, series_json, table
from medim.diffusion.settings import SamplerSettings
from medim.metrics.finding_reader import load_finding_reader
from medim.model import MeDiM
from medim.pairs import read_pairs
from medim.questions import Questions
from medim.tokenizers.vqgan import load_vqgan
from pipeline.code_hash import Instance, Sources, hash_text
from pipeline.params import read_section
from pipeline.params_file import ParamsError, load_top
from pipeline.paths import RUNS, WORK, World
from pipeline.resources import configure, device
from pipeline.stage import content_hash

NAME, ROOT = "sampler_evaluations", Path(__file__).parents[1]
CODE = ("generate", "evaluate")  # stages whose code makes the answers and scores them


def wanted_points(
    bases: Mapping[str, SamplerSettings], datasets: Sequence[str], sweep: Sweep
) -> tuple[list[Wanted], dict[str, list[dict[str, Any]]]]:
    """All points (those of several series more than once), and the series as they stand in the JSON file.

    Args:
        bases: task -> its default, see `base_of`.
        datasets: those that are asked.
        sweep: what is tried.
    """
    points: list[Wanted] = []
    listed: dict[str, list[dict[str, Any]]] = {part: [] for part in PANELS.values()}
    for task, base in bases.items():
        for dataset in datasets:
            group = f"{dataset}/{task}"
            points.append(Wanted(f"{group}/default", dataset, task, base))
            for series in series_of(base, task, sweep):
                found = [Wanted(f"{group}/{name_of(base, one)}", dataset, task, one) for one in series.settings]
                points += found
                row = series_json(series.panel, group, series.label, [one.key for one in found])
                listed[PANELS[series.panel]].append(row)
    return points, listed


def check_inputs(world: World, model: str, datasets: Sequence[str]) -> dict[str, str]:
    """Hashes of everything that is read: name -> sha256.

    Raises:
        FileNotFoundError: names what is missing and the command that makes it.
    """
    made_by = {model: f"train_medim@{model}", "vqgan": "train_vqgan", "finding_reader": "train_finding_reader"}
    for name, stage in made_by.items():
        weights = world.model(name) / "model.safetensors"
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} is missing: run `dvc repro {stage}`")
    for dataset in datasets:
        if not world.pairs(dataset, "val").is_file():
            raise FileNotFoundError(f"{world.pairs(dataset, 'val')} is missing: run `dvc repro prepare_data`")
    files = {f"models/{name}": world.model(name) for name in made_by}
    files |= {f"pairs/{dataset}/val": world.pairs(dataset, "val") for dataset in datasets}
    return {name: content_hash(path) for name, path in files.items()}


def run(
    world: World, model: str, datasets: Sequence[str], samplers: Mapping[str, SamplerSettings], sweep: Sweep, out: Path,
    numbers: Mapping[str, int],
) -> str:  # fmt: skip
    """Measure what is missing, write JSON and PNG into `out`, return the table.

    Args:
        world: where models and pairs are.
        model: folder of the MeDiM that is asked.
        datasets: drawn ones that it was trained on.
        samplers: task -> its sampler in params.yaml.
        sweep: what is tried.
        out: folder.
        numbers: `pairs` a dataset at most, `seed`, `resamples`, `chunk` (pairs a batch), `threads`.

    Raises:
        FileNotFoundError: see `check_inputs`.
        ValueError: see `base_of` and `ground_of`.
    """
    bases = {task: base_of(sampler) for task, sampler in samplers.items()}
    identity = {
        "inputs": check_inputs(world, model, datasets),
        "code": [hash_text(Instance(s, (("model", "medim"),)), Sources(ROOT)).split("\n")[0] for s in CODE],
        "sampler": {task: asdict(base) for task, base in bases.items()},
        **{name: numbers[name] for name in ("pairs", "seed", "resamples")},
    }
    record = Record(out / f"{NAME}.json", identity)
    if record.differs:
        print(f"{record.path} was measured with other {', '.join(record.differs)}: everything is measured anew")
    points, listed = wanted_points(bases, datasets, sweep)
    groups = list(dict.fromkeys(point.group for point in points))
    described = {"world": world.name, "model": model, "split": "val", "groups": groups, **listed}
    todo = missing(points, record)
    if todo:
        place = device()
        network, vqgan = MeDiM.load(world.model(model)).to(place), load_vqgan(world.model("vqgan")).to(place)
        reader = load_finding_reader(world.model("finding_reader")).to(place)
        grounds: dict[str, Ground] = {}
        for name in datasets:
            pairs = read_pairs(world.pairs(name, "val"), numbers["pairs"])
            grounds[name] = ground_of(name, pairs, Questions(network, vqgan, next(iter(bases.values()))))
        warm = replace(todo[0].settings, text_beams=1)  # what starts with the first pass is not measured
        Questions(network, vqgan, warm).joint([0, 1])
        bar = tqdm(total=len(todo), desc=NAME, unit="point", disable=None)

        def ask(one: Wanted) -> dict[str, Any]:
            bar.set_postfix_str(one.key)
            found = measure(
                Questions(network, vqgan, one.settings), one.task, grounds[one.dataset], reader, seed=numbers["seed"],
                chunk=numbers["chunk"], resamples=numbers["resamples"],
            )  # fmt: skip
            bar.update()
            return found

        with bar:
            said = {"device": str(place), "threads": numbers["threads"], "chunk": numbers["chunk"]}
            measure_all(todo, bases, record, said, ask, lambda: record.save(described))
    record.save(described)  # where nothing was missing, the list of series may still be another one
    draw(record, described, out / f"{NAME}.png")
    return table(record, described)


def main() -> int:
    """Measure, write, print the table."""
    from stages.evaluate import Section as Evaluate
    from stages.generate import Section as Generate
    from stages.train_medim import Section as TrainMedim

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", help="default: that of params.yaml; the sampler is always that of params.yaml")
    parser.add_argument("--model", default="medim")
    parser.add_argument("--pairs", type=int, default=128, help="validation pairs a dataset at most")
    parser.add_argument("--panel", nargs="+", choices=list(PANELS), default=list(PANELS), help="what is measured")
    parser.add_argument("--quick", action="store_true", help="few points")
    parser.add_argument("--out", type=Path, help="folder")
    given = parser.parse_args()
    if given.pairs < 1:
        parser.error(f"--pairs must be at least 1, got {given.pairs}")
    try:
        top, generate = load_top(), read_section("generate", Generate)
        world = World(RUNS / (given.world or top.world))
        resamples = read_section("evaluate", Evaluate).settings.resamples
        numbers = {
            "pairs": given.pairs, "seed": top.seed, "resamples": resamples, "chunk": generate.chunk,
            "threads": top.threads,
        }  # fmt: skip
        configure(top.threads, top.seed)
        out = given.out or (WORK / NAME / world.name if given.quick else world.results())
        sweep = replace(QUICK if given.quick else FULL, panels=tuple(given.panel))
        datasets = read_section("train_medim", TrainMedim).datasets
        if given.model not in generate.sampler_of_model:
            parser.error(f"params.yaml:generate.sampler_of_model has no {given.model!r}: {{}} is the sampler unchanged")
        generate = generate.of_model(given.model)
        samplers = {task: generate.samplers()[task] for task in MODALITY}
        print(run(world, given.model, datasets, samplers, sweep, out, numbers))
    except (FileNotFoundError, ParamsError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{out / NAME}.json\n{out / NAME}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
