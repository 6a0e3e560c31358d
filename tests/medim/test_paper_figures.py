"""Figures 4 and 7: who stands in them, and under which name."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from certain_reader import certain_reader

from medim.data.splits import drawn_pairs
from medim.evaluation import Reference
from medim.pairs import write_pairs
from medim.paper_figures import TASK, FigureSettings, paper_figures, shown_names
from medim.systems import GENERATED_SCHEMA, Sample


def lay(folder, model: str, *rows: str, task: str = TASK) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    samples = [
        Sample(row, task, "a", "a-1-0", 0, picture if task == TASK else None, "", "Clear.", 1).record() for row in rows
    ]
    path = folder / model / "a" / f"{task}.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(samples, schema=GENERATED_SCHEMA), path)


def test_systems_are_called_by_their_rows_and_variants_stand_in_the_ablation(tmp_path):
    for model in ("medim", "medim_3x", "medim_seed2", "no_adaln"):
        lay(tmp_path, model, "MeDiM")
    lay(tmp_path, "mine", "Mine")
    lay(tmp_path, "writer", "Writer", task="image_to_report")
    lay(tmp_path, "trivial", "trivial: constant", "trivial: random training pair")
    models = sorted(folder.name for folder in tmp_path.iterdir())
    systems, ablation = shown_names(tmp_path, models, {"a": None})
    assert systems == {"medim": "MeDiM", "mine": "Mine", "trivial": "trivial"}
    assert ablation == {"medim": "MeDiM", "no_adaln": "w/o AdaLN designs", "medim_3x": "medim_3x"}


def test_a_comparison_needs_two(tmp_path):
    pairs = list(drawn_pairs("phantom_cxr", "test", 0, 3, 32))
    for split in ("train", "test"):
        write_pairs(tmp_path / f"{split}.parquet", pairs)
    reference = Reference("a", tmp_path / "test.parquet", tmp_path / "train.parquet", certain_reader("edema"))

    def drawn(model: str, row: str) -> list[str]:
        picture = np.zeros((32, 32, 3), np.uint8)
        samples = [Sample(row, TASK, "a", pair.pair_id, 0, picture, "", None, 1).record() for pair in pairs]
        path = tmp_path / "generated" / model / "a" / f"{TASK}.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(samples, schema=GENERATED_SCHEMA), path)
        return sorted(paper_figures(tmp_path / "generated", {"a": reference}, FigureSettings(2, 2, 2, 32)))

    assert drawn("medim", "MeDiM") == ["figure8"]
    assert drawn("unidisc", "UniDisc") == ["figure4", "figure8"]
    assert drawn("no_adaln", "MeDiM") == ["figure4", "figure7", "figure8"]
