"""Figures 4 and 7: who stands in them, and under which name."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medim.paper_figures import TASK, shown_names
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
