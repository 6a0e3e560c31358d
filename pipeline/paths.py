"""Every path of the project, once.

What a world's stages write lies under `runs/<world>/`; what several worlds share (MLflow, code hashes, unfinished work)
lies beside it. All paths are relative to the repository root, which is where every command runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.params_file import PARAMS, load_top

RUNS = Path("runs")
CODE = Path("code")
WORK = Path(".work")
MLFLOW = Path("mlflow")
RESULTS = Path("docs/results")
README = Path("README.md")
PROFILES = Path("profiles")
DVC_YAML = Path("dvc.yaml")
DVC_LOCK = Path("dvc.lock")
PREFECT_YAML = Path("prefect.yaml")
PREFECT = Path(".prefect")  # database, logs and locks of the flows
STAGE_LOCKS = PREFECT / "stages"
FLOW_RUNS = PREFECT / "runs"

SPLITS = ("train", "val", "test")
SIDE = "side"  # folder beside those of the datasets in generated/<model>


@dataclass(frozen=True)
class World:
    """The artefacts of one world. `root` is `runs/<world>`; nothing outside it is written by the world's stages."""

    root: Path

    @property
    def name(self) -> str:
        """The parameter `world`."""
        return self.root.name

    def pairs(self, dataset: str, split: str) -> Path:
        """Parquet file of image-report pairs (medim.pairs.PAIR_SCHEMA)."""
        return self.root / "data" / "pairs" / dataset / f"{_known_split(split)}.parquet"

    def tokens(self, dataset: str, split: str) -> Path:
        """Parquet file of token pairs."""
        return self.root / "data" / "tokens" / dataset / f"{_known_split(split)}.parquet"

    def pairs_folder(self, dataset: str | None = None) -> Path:
        """All pairs, or those of one dataset."""
        folder = self.root / "data" / "pairs"
        return folder if dataset is None else folder / dataset

    def tokens_folder(self, dataset: str | None = None) -> Path:
        """All token pairs, or those of one dataset."""
        folder = self.root / "data" / "tokens"
        return folder if dataset is None else folder / dataset

    def filtered(self) -> Path:
        """Folder of the test reports that a judge chose, and kept.json (medim.report_filter)."""
        return self.root / "data" / "filtered"

    def model(self, name: str) -> Path:
        """Folder of a trained network: config.json, model.safetensors, ..."""
        return self.root / "models" / name

    def synthetic(self, generator: str) -> Path:
        """Folder of a generator's synthetic pairs: <dataset>.parquet, held_out.json, card.md."""
        return self.root / "synthetic" / generator

    def synthetic_file(self, generator: str, dataset: str) -> Path:
        """Parquet file of a generator's synthetic pairs (medim.synthesis.SYNTHETIC_SCHEMA)."""
        return self.synthetic(generator) / f"{dataset}.parquet"

    def mixes(self) -> Path:
        """Folder of the training pairs of the downstream study, one folder an arm."""
        return self.root / "mixes"

    def mix(self, arm: str) -> Path:
        """The training pairs of one arm: <dataset>.parquet, mix.json."""
        return self.mixes() / arm

    def generated(self, model: str) -> Path:
        """Folder of what a model generated, as Parquet files `<dataset>/<task>.parquet`."""
        return self.root / "generated" / model

    def generated_file(self, model: str, dataset: str, task: str) -> Path:
        """What a model generated for one dataset and task (report_to_image, image_to_report, joint)."""
        return self.generated(model) / dataset / f"{task}.parquet"

    def sample_files(self, model: str) -> list[Path]:
        """All `<dataset>/<task>.parquet` of a model, in order; what lies in `side` holds no samples."""
        return sorted(path for path in self.generated(model).glob("*/*.parquet") if path.parent.name != SIDE)

    def side_files(self, model: str) -> list[Path]:
        """All `side/<dataset>.parquet` of a model, in order; none where it gives no probabilities."""
        return sorted((self.generated(model) / SIDE).glob("*.parquet"))

    def metrics(self, name: str) -> Path:
        """Values, n and intervals of one model."""
        return self.root / "metrics" / f"{name}.json"

    def costs(self, instance: str) -> Path:
        """Seconds, peak memory, examples and parameters of one stage instance (no DVC output)."""
        return self.root / "costs" / f"{instance}.json"

    def logs(self, instance: str) -> Path:
        """Curves of one stage instance, one JSON object a line (no DVC output)."""
        return self.root / "logs" / f"{instance}.jsonl"

    def finished(self, instance: str) -> Path:
        """Curves and costs of the finished runs of one stage instance (no DVC output), see stage_records.py."""
        return self.root / "finished" / instance

    def repros(self) -> Path:
        """Folder of the finished repros (no DVC output), one JSON file each, see repro_record.py."""
        return self.root / "repros"

    def tables(self) -> Path:
        """Folder of the tables: <id>.json, .md, .csv, .html."""
        return self.root / "tables"

    def table(self, table: str, suffix: str = ".json") -> Path:
        """One table in one format."""
        return self.tables() / f"{table}{suffix}"

    def summary(self) -> Path:
        """Folder of the few numbers that `dvc metrics` shows: chest.json, pathology.json."""
        return self.root / "summary"

    def figures(self) -> Path:
        """Folder of the figures (PNG)."""
        return self.root / "figures"

    def figure(self, name: str) -> Path:
        """One figure."""
        return self.figures() / f"{name}.png"

    def reader_page(self) -> Path:
        """The page on which people rate generated pairs; its folder is what readers are sent."""
        return self.root / "reader_study" / "page.html"

    def reader_key(self) -> Path:
        """Which pair of that page is whose; apart, since readers must not have it."""
        return self.root / "reader_key.json"

    def receipt(self) -> Path:
        """What `record_tables` leaves once MLflow shows this world: a content hash."""
        return MLFLOW / f"receipt-{self.name}.json"

    def results(self) -> Path:
        """The published results, committed."""
        return RESULTS / self.name


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return split


def world_from_params(path: Path = PARAMS) -> World:
    """The world that params.yaml names."""
    return World(RUNS / load_top(path).world)


def worlds(runs: Path = RUNS) -> list[World]:
    """Every world there is, by name."""
    return [World(folder) for folder in sorted(runs.glob("*")) if folder.is_dir()]


def instance_name(stage: str, item: str | None) -> str:
    """`train_medim` or `train_medim@medim`: DVC's name of a stage instance."""
    return stage if item is None else f"{stage}@{item}"


def code_hash_file(instance: str, folder: Path = CODE) -> Path:
    """The file whose bytes change when, and only when, the code that a stage instance runs changes."""
    return folder / f"{instance}.txt"


def work_folder(stage: str, key: str) -> Path:
    """Where a stage keeps unfinished work; never an output of DVC, which deletes outputs before a run."""
    return WORK / stage / key


def mlflow_db() -> Path:
    """MLflow's SQLite file."""
    return MLFLOW / "mlflow.db"


def mlflow_artifacts() -> Path:
    """MLflow's files."""
    return MLFLOW / "artifacts"
