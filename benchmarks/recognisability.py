"""Draws a sheet of generated pictures without any words, to ask people which is what: do they recognise the domain?

    python -m benchmarks.recognisability --world phantom --seed 0 --out FOLDER [--model medim] [--each 8] [--real]

Reads runs/<world>/generated/<model>/<dataset>/report_to_image.parquet of every dataset that the world has training and
test pairs of, and takes `each` pictures a dataset, drawn by the seed and shuffled. Writes FOLDER/sheet.png, pictures
numbered from 1, and FOLDER/key.json: number -> dataset, pair and the findings of the report that was given. Show the
sheet, keep the key. The same files and seed give the same bytes. --real shows the true pictures of the same reports
under the same numbers: what people can name at best.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from medim.figures import BLACK, save_png
from medim.generation import read_generated
from medim.pairs import Pair, load_images, read_pairs
from medim.sample_sheets import draw_sheet
from medim.systems import Sample
from pipeline.paths import RUNS, World

TASK, COLUMNS, ZOOM = "report_to_image", 4, 4


def drawn(samples: Mapping[str, Sequence[Sample]], each: int, seed: int) -> list[Sample]:
    """`each` samples of every dataset, chosen and shuffled by the seed.

    Raises:
        ValueError: a dataset has fewer, or there is no dataset.
    """
    if not samples:
        raise ValueError("there is no dataset with training pairs and generated pictures: run `dvc repro generate`")
    generator = np.random.default_rng(seed)
    chosen: list[Sample] = []
    for dataset, group in samples.items():
        if len(group) < each:
            raise ValueError(f"{dataset} has {len(group)} generated pictures, --each asks for {each}: ask for fewer")
        chosen += [group[i] for i in generator.choice(len(group), each, replace=False)]
    return [chosen[i] for i in generator.permutation(len(chosen))]


def unlabelled_sheet(samples: Sequence[Sample]) -> Image.Image:
    """Numbered pictures, four a row, no words that tell what they show."""
    images = [sample.image for sample in samples if sample.image is not None]
    title = [[(f"{len(images)} pictures: what does each show?", BLACK)]]
    return draw_sheet(images, [[] for _ in images], [("", BLACK) for _ in images], COLUMNS, ZOOM, title)


def key_of(samples: Sequence[Sample], pairs: Mapping[str, Mapping[str, Pair]]) -> dict[str, dict[str, Any]]:
    """Number on the sheet -> dataset, pair_id and findings of the given report (null: unknown).

    Args:
        samples: in the order of the sheet.
        pairs: dataset -> pair_id -> its test pair.
    """
    return {
        str(number + 1): {
            "dataset": sample.dataset,
            "pair_id": sample.pair_id,
            "findings": pairs[sample.dataset][sample.pair_id].states,
        }
        for number, sample in enumerate(samples)
    }


def trained_datasets(world: World) -> list[str]:
    """Datasets with training pairs for which pictures were asked; `drawings` has no test pairs and so no pictures.

    Raises:
        FileNotFoundError: the world has no pairs.
    """
    files = sorted(world.pairs_folder().glob("*/train.parquet"))
    if not files:
        raise FileNotFoundError(f"{world.pairs_folder()} holds no pairs: run `dvc repro prepare_data`")
    tested = [file for file in files if _rows(file) and _rows(file.with_name("test.parquet"))]
    return [file.parent.name for file in tested]


def _rows(file: Path) -> int:
    return int(pq.read_metadata(file).num_rows) if file.is_file() else 0


def write_sheet(world: World, model: str, each: int, seed: int, out: Path, real: bool = False) -> list[Path]:
    """Write sheet.png and key.json into `out`; returns their paths.

    Raises:
        FileNotFoundError: pairs or generated pictures are missing.
        ValueError: see `drawn`.
    """
    datasets = trained_datasets(world)
    samples = drawn({d: read_generated(world.generated_file(model, d, TASK)) for d in datasets}, each, seed)
    pairs = {d: {pair.pair_id: pair for pair in read_pairs(world.pairs(d, "test"))} for d in datasets}
    if real:
        samples = [replace(s, image=load_images([pairs[s.dataset][s.pair_id]])[0]) for s in samples]
    key = {"world": world.name, "model": "real" if real else model, "seed": seed, "pictures": key_of(samples, pairs)}
    sheet, answers = out / "sheet.png", out / "key.json"
    save_png(unlabelled_sheet(samples), sheet)
    answers.write_text(json.dumps(key, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return [sheet, answers]


def main() -> int:
    """Write the sheet and its key; their names are printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="medim")
    parser.add_argument("--each", type=int, default=8, help="pictures a dataset")
    parser.add_argument("--real", action="store_true", help="true pictures of the same reports")
    given = parser.parse_args()
    try:
        paths = write_sheet(World(RUNS / given.world), given.model, given.each, given.seed, given.out, given.real)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
