"""The paper's tables as data: which rows and columns they have, which run fills which cell, what the paper printed.

`mission`, Tables 1-7 and the charts 5a-6b as tables. A cell holds a number of metrics/<model>.json or null ("not
measured"), never a number of the paper: those (paper_numbers.json) stand beside it, and only where the same metric by
the same protocol made them: the NLTK protocol for reports, Inception's FID and IS for pictures.

Metric keys are `<dataset>/<task>/<metric>`, columns `<dataset>/<metric>` (in `mission`: the metric key itself,
but for STORED).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from medim.data import get_domain
from medim.data.domain import labels_of
from medim.metrics.clinical import RADGRAPH_LEVELS
from medim.metrics.reader_questions import ERROR_KINDS, REAL
from medim.metrics.report_errors import CE_RULES_OF_ONE, EFFECT, ERRORS, NOTICED, TASK

Metrics = Mapping[str, Mapping[str, Any]]  # model -> content of metrics/<model>.json

LOWER = (  # metrics that are better when lower
    "FID", "KID", "reconstruction FID", "copied_from_train", "repeated_sentences", "contradicted_findings",
)  # fmt: skip
NEITHER = (  # neither high nor low is better: held against what real pairs have
    "length_ratio", "nearest_train_gap", "share", "silent_pairs", "nearest_neighbour_f1", "finding_f1_of_real",
)  # fmt: skip
PHANTOM = " (phantom features)"
MEAN = "mean"  # stands for the dataset in columns of Table 4
TRIVIAL = "trivial: "

IMAGE_METRICS = ("FID", "IS", "KID", "precision", "recall")
REPORT_METRICS = {  # metric -> column as printed; only the NLTK protocol made the printed numbers
    "BLEU-1 (nltk)": "B-1", "BLEU-2 (nltk)": "B-2", "BLEU-3 (nltk)": "B-3", "BLEU-4 (nltk)": None,
    "METEOR (nltk)": "MTR", "ROUGE-L (nltk)": "R-L",
    "BLEU-1 (coco)": None, "BLEU-2 (coco)": None, "BLEU-3 (coco)": None, "BLEU-4 (coco)": None,
    "METEOR (coco)": None, "ROUGE-L (coco)": None, "CIDEr (coco)": None,
    "length_ratio": None, "distinct_reports": None, "copied_from_train": None,
}  # fmt: skip
SELF_METRICS = ("repeated_sentences", "contradicted_findings", "uncontradicted_finding_f1")
SIDE_METRICS = ("side_auroc", "side_pair_accuracy")
FINDING_METRICS = (
    "finding_precision", "finding_recall", "finding_f1", "finding_f1_without_side", "sentence_validity", *SELF_METRICS,
)  # fmt: skip
CLINICAL_METRICS = (  # of chest reports: CheXpert's labels, by our rules
    "ce_rules_micro_f1_14 (uncertain as negative)", "ce_rules_macro_f1_14 (uncertain as negative)",
    "ce_rules_micro_f1_5 (uncertain as negative)", "ce_rules_macro_f1_5 (uncertain as negative)",
)  # fmt: skip
PACKAGED_METRICS = (  # of real chest reports, where evaluate.settings.clinical asks for them
    *(f"chexbert_{mean}_f1_{size} (uncertain as negative)" for size in (14, 5) for mean in ("micro", "macro")),
    *(f"radgraph_{level}" for level in RADGRAPH_LEVELS),
)
JUDGED = tuple(f"alignment (Qwen2-VL, {protocol})" for protocol in ("official", "strict", "grid"))
MIX_METRICS = (
    "BLEU-1 (nltk)", "BLEU-2 (nltk)", "BLEU-3 (nltk)", "METEOR (nltk)", "ROUGE-L (nltk)", "BLEU-4 (coco)",
    "METEOR (coco)", "CIDEr (coco)",
)  # fmt: skip
SYNTHETIC = {"unidisc": "UniDisc", "medim": "MeDiM"}  # generators of synthetic pairs, as they are called
JOINT_METRICS = (
    "finding_f1", "alignment (phantom judge)", "silent_pairs", "sentence_validity", *SELF_METRICS,
    "findings_within_30pct", "distinct_sets_ratio", "distinct_reports", "known_prompts", "share",
)  # fmt: skip
READERS = "readers"  # stands for a model: what people said of generated pairs, see medim.reader_results
HUMAN_METRICS = (
    "human agreement", "human realism", "human origin (real)",
    *(f"human error: {kind} (significant)" for kind in ERROR_KINDS), "human artefact (none)",
)  # fmt: skip
SCORES_OF_ONE = ("BLEU", "METEOR", "ROUGE", "CIDEr", "finding_f1")  # metrics that a single report has
VQGAN_METRICS = (
    "psnr", "ssim", "reconstruction FID" + PHANTOM, "codebook_usage", "codebook_perplexity", "finding_f1_ratio",
    "finding_f1_ratio_worst",
)  # fmt: skip
MISSION_METRICS = (
    "image_to_report/finding_f1", "image_to_report/sentence_validity",
    *(f"image_to_report/{name}" for name in (*SELF_METRICS, *SIDE_METRICS)),
    "report_to_image/finding_f1", "report_to_image/finding_f1_of_real", "report_to_image/finding_f1_ratio",
    "report_to_image/nearest_train_gap", "joint/finding_f1", "joint/silent_pairs", "joint/sentence_validity",
    "joint/findings_within_30pct", "joint/distinct_sets_ratio",
    "vqgan/finding_f1_ratio", "vqgan/finding_f1_ratio_worst", "vqgan/psnr", "difficulty/nearest_neighbour_f1",
)  # fmt: skip
STORED = {f"image_to_report/{name}": f"side/{name}" for name in SIDE_METRICS}  # column of `mission` -> metric key


@dataclass(frozen=True)
class World:
    """The datasets that stand where the paper's stood; None: this world has none."""

    profile: str
    chest: str | None  # MIMIC-CXR
    pathology: str | None  # PathGen
    ood: str | None  # IU-Xray
    drawn: bool  # phantoms: pictures are judged by the finding reader's features and findings


def phantom_world(profile: str) -> World:
    """The world of every phantom profile."""
    return World(profile, "phantom_cxr", "phantom_pathology", "phantom_cxr_ood", True)


class Source(NamedTuple):
    """metrics/<model>.json and one of its rows; None: its only row. `<model>_seed<number>` are its further seeds.

    `only`: (asked, stored): it fills nothing but keys that end with `asked`, from those that end with `stored`.
    """

    model: str
    row: str | None = None
    only: tuple[str, str] | None = None

    def stored_key(self, key: str) -> str | None:
        """The key of its file that answers a metric key; None: it does not answer it."""
        if self.only is None:
            return key
        return key.removesuffix(self.only[0]) + self.only[1] if key.endswith(self.only[0]) else None


@dataclass(frozen=True)
class Row:
    """A row: its name as the paper prints it, or `trivial: …`.

    `gain`: (of, over) names of two other rows; the cells are 100 * (of / over - 1), in per cent. `leaves_out`: part
    of a metric key -> why such a cell makes no sense for this row.
    """

    name: str
    sources: tuple[Source, ...] = ()
    kind: str = ""  # NA, MED, DDM, MLLM as in the paper
    gain: tuple[str, str] | None = None
    leaves_out: Mapping[str, str] = field(default_factory=dict)


class Column(NamedTuple):
    """A column: the metric keys whose mean it shows (one, but for Table 4) and the paper's name for it, if printed."""

    name: str
    metric: str
    keys: tuple[str, ...]
    printed: str | None
    better: str


@dataclass(frozen=True)
class Table:
    """One table. `columns(world)` are its columns; a missing dataset gives none."""

    id: str
    title: str
    rows: tuple[Row, ...]
    columns: Callable[[World], list[Column]]
    needs: tuple[str, ...]  # fields of World

    @property
    def models(self) -> tuple[str, ...]:
        """Models whose metrics fill it."""
        return tuple(dict.fromkeys(source.model for row in self.rows for source in row.sources))


def better_of(metric: str) -> str:
    """'lower', 'higher' or 'neither', of a metric with or without its task and the mark of a proxy."""
    name = metric.rpartition("/")[2].removesuffix(PHANTOM)
    wrong = name in LOWER or name.startswith("human error")
    return "lower" if wrong else "neither" if name in NEITHER else "higher"


def _columns(
    datasets: Sequence[str | None], task: str, metrics: Mapping[str, str | None], shown: str | None = None
) -> list[Column]:
    """One column a metric: over one dataset, or the mean of several, shown as `shown`."""
    names = [name for name in datasets if name is not None]
    if len(names) < len(datasets):
        return []
    head = shown or (names[0] if names else "")
    return [
        Column(f"{head}/{metric}", metric, tuple(f"{n}/{task}/{metric}" for n in names), printed, better_of(metric))
        for metric, printed in metrics.items()
    ]


def _image_metrics(world: World, prefix: str = "") -> Mapping[str, str | None]:
    """The reader's features and, of worlds of real data, the literature's with its printed numbers."""
    real = {name: prefix + name if name in ("FID", "IS") else None for name in IMAGE_METRICS}
    proxies = dict.fromkeys([name + PHANTOM for name in IMAGE_METRICS])
    return ({} if world.drawn else real) | proxies | {"finding_f1": None}


def _report_metrics(world: World, prefix: str = "") -> dict[str, str | None]:
    metrics = {name: printed and prefix + printed for name, printed in REPORT_METRICS.items()}
    return metrics | dict.fromkeys(FINDING_METRICS)


def _images(slot: str) -> Callable[[World], list[Column]]:
    return lambda world: _columns([getattr(world, slot)], "report_to_image", _image_metrics(world))


def _of_reports(world: World, slot: str, prefix: str = "") -> list[Column]:
    packaged = () if world.drawn else PACKAGED_METRICS
    clinical = dict.fromkeys((*CLINICAL_METRICS, *packaged) if slot == "chest" else ())
    return _columns([getattr(world, slot)], "image_to_report", _report_metrics(world, prefix) | clinical)


def _reports(slot: str) -> Callable[[World], list[Column]]:
    return lambda world: _of_reports(world, slot)


def _table3(world: World) -> list[Column]:
    return _of_reports(world, "chest", "MIMIC-CXR/") + _of_reports(world, "pathology", "PathGen/")


def _table4(world: World) -> list[Column]:
    both = (world.chest, world.pathology)
    reports = _columns(both, "image_to_report", _report_metrics(world, "m"), MEAN)
    images = _columns(both, "report_to_image", _image_metrics(world, "m"), MEAN)
    clash = {c.name for c in reports} & {c.name for c in images}  # finding_f1 of both tasks
    tasks = {
        id(c): task for task, columns in (("image_to_report", reports), ("report_to_image", images)) for c in columns
    }
    return [c._replace(name=f"{MEAN}/{tasks[id(c)]}/{c.metric}") if c.name in clash else c for c in reports + images]


def _figure5a(world: World) -> list[Column]:
    judged = () if world.drawn else JUDGED
    metrics = dict.fromkeys((*JOINT_METRICS, *judged, "FID" + PHANTOM, *HUMAN_METRICS))
    return [c for name in (world.chest, world.pathology) for c in _columns([name], "joint", metrics)]


def _vqgan(world: World) -> list[Column]:
    """What the tokenizer keeps of each dataset, as a whole and of each finding."""
    columns = []
    for name in (world.chest, world.pathology):
        labels = labels_of(get_domain(name).findings) if name is not None and world.drawn else ()
        metrics = [*VQGAN_METRICS, *(f"finding_f1_ratio ({label})" for label in labels)]
        columns += _columns([name], "vqgan", dict.fromkeys(metrics))
    return columns


def _mission(world: World) -> list[Column]:
    names = [name for name in (world.chest, world.pathology) if name is not None]
    return [
        Column(f"{name}/{metric}", metric, (f"{name}/{STORED.get(metric, metric)}",), None, better_of(metric))
        for name in names
        for metric in MISSION_METRICS
    ]


def _report_errors(world: World) -> list[Column]:
    """How often each metric drops for an error, and how far; of worlds whose reports can be written anew."""
    of_all = [m for m in (*REPORT_METRICS, *FINDING_METRICS) if m.startswith(SCORES_OF_ONE)]
    names = [name for name in (world.chest, world.pathology) if name is not None and world.drawn]
    return [
        Column(f"{n}/{m}: {w}", f"{m}: {w}", (f"{n}/{TASK}/{m}: {w}",), None, "neither")
        for n in names
        for w in (NOTICED, EFFECT)
        for m in (*of_all, *([CE_RULES_OF_ONE] if n == world.chest else []))
    ]


def _trivial(leaves_out: Mapping[str, str] | None = None) -> tuple[Row, ...]:
    """The rules that every trained system must beat; the last one answers no joint question."""
    out = dict(leaves_out or {})
    joint = {"/joint/": "a nearest neighbour needs a picture or a report to start from"}
    names = ("constant", "random training pair", "nearest neighbour")
    return tuple(
        Row(TRIVIAL + name, (Source("trivial", TRIVIAL + name),), leaves_out=out | (joint if name == names[2] else {}))
        for name in names
    )


def _rated(row: Row, system: str) -> Row:
    """A row whose pairs readers have rated."""
    return replace(row, sources=(*row.sources, Source(READERS, system)))


VQGAN_ROWS = (Row("VQGAN", (Source("vqgan"),)),)
MEDIM = Row("MeDiM", (Source("medim", "MeDiM"),), "MLLM")
UNIDISC = Row("UniDisc", (Source("unidisc"),), "DDM")
IMAGE_ROWS = (
    Row("SDM", (Source("sdm"),), "NA"), Row("SDM (SFT)", (Source("sdm_sft"),), "NA"), UNIDISC,
    Row("U-KAN", (Source("u_kan"),), "MED"), Row("Med-Art", (Source("med_art"),), "MED"),
    Row("Liquid*", (Source("liquid"),), "MLLM"), Row("MMaDA*", (Source("mmada"),), "MLLM"), MEDIM,
)  # fmt: skip
REPORT_ROWS = (
    Row("BLIP", (Source("blip"),), "NA"), Row("R2Gen", (Source("r2gen"),), "MED"),
    Row("R2GenCMN", (Source("r2gen_cmn"),), "MED"), Row("BLLM", (Source("bllm"),), "MED"), UNIDISC,
    Row("Liquid*", (Source("liquid"),), "MLLM"), Row("MMaDA*", (Source("mmada"),), "MLLM"), MEDIM,
)  # fmt: skip
ABLATION_ROWS = (
    MEDIM, Row("w/ DiT backbone", (Source("dit_backbone"),)), Row("w/ UniDisc backbone", (Source("unidisc_backbone"),)),
    Row("w/o pretrained MLLM weight", (Source("no_pretrained"),)),
    Row("w/o timestep embedding", (Source("no_timestep"),)), Row("w/o AdaLN designs", (Source("no_adaln"),)),
    Row("w/ causal mask", (Source("causal_mask"),)),
    *(Row(f"seed {k}", (Source("medim", f"seed {k}"),)) for k in (1, 2, 3)),
)  # fmt: skip
OOD_ROWS = (
    UNIDISC, Row("MMaDA", (Source("mmada"),), "MLLM"), Row("Liquid", (Source("liquid"),), "MLLM"), MEDIM,
)  # fmt: skip
PAIR_ROWS = (
    _rated(UNIDISC, "UniDisc"), _rated(MEDIM, "MeDiM"),
    Row("real pairs", (Source(READERS, REAL),), leaves_out={
        f"/joint/{metric}": "computed of generated pairs; real ones are only shown to readers"
        for metric in (*JOINT_METRICS, "FID")
    }),
    *_trivial({"/joint/human": "readers are shown pairs of systems, not of rules"}),
)  # fmt: skip
EXPERT_ROWS = (
    Row("DiffInfinite", (Source("diffinfinite"),), "MED"), Row("PathLDM", (Source("pathldm"),), "MED"),
    Row("PixCell", (Source("pixcell"),), "MED"), MEDIM,
)  # fmt: skip
VLM_ROWS = (Row("LLaVA-Rad", (Source("llava_rad"),), "MED"), MEDIM)
DIFFICULTY = Source(  # how much of the findings copying the report of the most similar training picture gives
    "trivial", TRIVIAL + "nearest neighbour", ("difficulty/nearest_neighbour_f1", "image_to_report/finding_f1")
)
MISSION_ROWS = (
    Row("MeDiM", (*MEDIM.sources, Source("vqgan"), DIFFICULTY), "MLLM"),
    *_trivial(
        {
            "/vqgan/": "says how good the image tokenizer is, whatever the row",
            "/difficulty/": "says how hard the dataset is, whatever the row",
            "/finding_f1_of_real": "says how good the finding reader is, whatever the row",
            "/side_": "needs probabilities, which this row does not give",
        }
    ),
)


def _downstream_rows(model: str) -> tuple[Row, ...]:
    """Real pairs only, with as many synthetic ones of UniDisc or MeDiM, and the control: twice as many real ones."""
    return (
        Row("real only", (Source(f"{model}_real"),)),
        Row("real + UniDisc", (Source(f"{model}_real_unidisc"),)),
        Row("real + MeDiM", (Source(f"{model}_real_medim"),)),
        Row("real, twice as many", (Source(f"{model}_real_twice"),)),
        Row("UniDisc, gain over real only", gain=("real + UniDisc", "real only")),
        Row("MeDiM, gain over real only", gain=("real + MeDiM", "real only")),
        Row("real, twice as many, gain over real only", gain=("real, twice as many", "real only")),
        # they know every training pair, where an arm holds a few hundred
        *(replace(row, name=f"{row.name}, of all training pairs") for row in _trivial()),
    )


def _further_mixes() -> tuple[Row, ...]:
    """Less real data, and synthetic pairs before the real ones instead of among them; each against its real pairs."""
    rows: list[Row] = []
    for model, label in (("r2gen", "R2Gen"), ("bllm", "BLLM")):
        only = f"{label}, a tenth of real only"
        rows.append(Row(only, (Source(f"{model}_tenth_real"),)))
        for generator, name in SYNTHETIC.items():
            both = f"{label}, a tenth of real + {name}"
            rows.append(Row(both, (Source(f"{model}_tenth_real_{generator}"),)))
            rows.append(Row(f"{both}, gain over real only", gain=(both, only)))
        rows.append(Row(f"{label}, real only", (Source(f"{model}_real"),)))
        for generator, name in SYNTHETIC.items():
            both = f"{label}, {name}, then real"
            rows.append(Row(both, (Source(f"{model}_{generator}_then_real"),)))
            rows.append(Row(f"{both}, gain over real only", gain=(both, f"{label}, real only")))
    return tuple(rows)


def _mixes(world: World) -> list[Column]:
    metrics = dict.fromkeys((*MIX_METRICS, "finding_f1", "sentence_validity"))
    return [c for name in (world.chest, world.pathology) for c in _columns([name], "image_to_report", metrics)]


TABLES = (
    Table("mission", "What the pipeline is for", MISSION_ROWS, _mission, ("chest", "pathology")),
    Table("vqgan", "What the image tokenizer keeps of pictures and of each finding",
          VQGAN_ROWS, _vqgan, ("chest", "pathology")),
    Table("report_errors", "Which metric notices which error: share of reports that score less, and Cohen's d",
          tuple(Row(error, (Source(TASK, error),)) for error in ERRORS), _report_errors, ("chest", "pathology")),
    Table("table1", "Chest X-ray image generation", (*IMAGE_ROWS, *_trivial()), _images("chest"), ("chest",)),
    Table("table2", "Pathology image generation", (*IMAGE_ROWS, *_trivial()), _images("pathology"), ("pathology",)),
    Table("table3", "Medical report generation", (*REPORT_ROWS, *_trivial()), _table3, ("chest", "pathology")),
    Table("table4", "Ablation of backbone and components, means over chest X-ray and pathology",
          (*ABLATION_ROWS, *_trivial()), _table4, ("chest", "pathology")),
    Table("table5", "Out of distribution (no fine-tuning)", (*OOD_ROWS, *_trivial()), _images("ood"), ("ood",)),
    Table("table6", "Against medical expert generative models", (*EXPERT_ROWS, *_trivial()), _images("pathology"),
          ("pathology",)),
    Table("table7", "Against a medical expert VLM", (*VLM_ROWS, *_trivial()), _reports("chest"), ("chest",)),
    Table("figure5a", "Consistency of generated pairs", PAIR_ROWS, _figure5a, ("chest", "pathology")),
    Table("figure5b", "Downstream R2Gen, chest X-ray", _downstream_rows("r2gen"), _reports("chest"), ("chest",)),
    Table("figure5c", "Downstream R2Gen, pathology", _downstream_rows("r2gen"), _reports("pathology"), ("pathology",)),
    Table("figure6a", "Downstream BLLM, chest X-ray", _downstream_rows("bllm"), _reports("chest"), ("chest",)),
    Table("figure6b", "Downstream BLLM, pathology", _downstream_rows("bllm"), _reports("pathology"), ("pathology",)),
    Table("downstream", "Downstream with less real data, and with synthetic pairs before the real ones",
          _further_mixes(), _mixes, ("chest", "pathology")),
)  # fmt: skip


def get_table(table_id: str) -> Table:
    """The table of an id.

    Raises:
        KeyError: no such table.
    """
    for table in TABLES:
        if table.id == table_id:
            return table
    raise KeyError(f"no table {table_id!r}; there are {', '.join(table.id for table in TABLES)}")
