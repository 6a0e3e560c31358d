"""Pictures and reports of one's own: the whole graph on folders, with broken files among them."""

import csv
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from worlds import SMALL, merged_mappings, new_clone

from pipeline.params_file import parse_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CHEST = [  # a note a picture; two pictures a patient
    "Clear lungs. No effusion.", "Small left effusion.", "Right consolidation.", "Right consolidation, clearing.",
    "Enlarged heart, clear lungs.", "Enlarged heart.", "Normal chest film.", "Normal chest film. No effusion.",
    "Left pneumothorax, tube in place.", "Left pneumothorax, smaller.", "Bilateral opacities.", "Worse opacities.",
    "Clear lungs.", "Clear lungs, no effusion.", "Right basal atelectasis.", "Left basal atelectasis.",
]  # fmt: skip
BROKEN = {
    "truncated.jpg": "cannot be decoded",
    "empty.jpg": "file is empty",
    "text.jpg": "not a picture",
    "missing.jpg": "file is missing",
    "silent.jpg": "the report is empty",
}
SPLITS = ("train", "val", "test")
TASKS = ("image_to_report", "report_to_image", "joint")
SLIDES = [f"TCGA-{number}-slide" for number in range(8)]


def picture(path, seed):
    """A picture of its own for every seed, 40 pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((40, 40), Image.Resampling.BICUBIC).save(path)


def write_data(root):
    """`chest`: a table beside its pictures, five of its rows unusable; `histology`: one folder and caption a slide."""
    rows = [(f"{number}.jpg", note, f"p{number // 2}") for number, note in enumerate(CHEST)]
    for number, (name, _, _) in enumerate(rows):
        picture(root / "chest/images" / name, number)
    folder = root / "chest/images"
    picture(folder / "truncated.jpg", 90)
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:400])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    picture(folder / "silent.jpg", 91)
    rows += [(name, "" if name == "silent.jpg" else "Clear lungs.", "p0") for name in BROKEN]
    with (root / "chest/metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "clinical_notes", "patientid"), *rows])
    for number, slide in enumerate(SLIDES):
        for tile in range(2):
            picture(root / "histology" / slide / f"{tile}.jpg", 100 + 2 * number + tile)
    captions = [{"slide": slide, "caption": f"Tissue of slide {n} with few glands."} for n, slide in enumerate(SLIDES)]
    (root / "histology/slide_level_captions.json").write_text(json.dumps(captions))


def folder_profile(clone):
    """profiles/own.yaml: profiles/folder.yaml over tiny parameters, reading data_in/chest and data_in/histology."""
    profiles = clone.folder / "profiles"
    tiny = parse_yaml((profiles / "tiny.yaml").read_text(), "tiny")
    own = parse_yaml((profiles / "folder.yaml").read_text().replace("!replace", ""), "folder")
    widths = {section: tiny[section] for section in tiny if isinstance(tiny[section], dict)}
    merged = merged_mappings(merged_mappings(own, widths), SMALL)
    data = own["prepare_data"]["datasets"]
    data["chest"]["root"], data["histology"]["root"] = "data_in/chest", "data_in/histology"
    data["drawings"] = {"train": 32, "val": 8, "test": 0}
    data["marks"] = {"train": 32, "val": 8, "test": 0}
    merged["prepare_data"]["datasets"] = data
    merged["filter_reports"] = {"datasets": {}}
    for method in ("r2gen", "bllm"):
        merged["train_baseline"]["settings"][method]["pretraining"]["datasets"] = ["chest", "histology"]
    merged["synthesize_pairs"]["settings"]["pairs"] = merged["mix_pairs"]["pairs"] = 4
    merged |= {"profile": "own", "world": "own"}
    text = yaml.safe_dump(merged, sort_keys=False)
    replaced = (("prepare_data", "datasets"), ("evaluate", "datasets"), ("train_baseline", "    fallback"),
                ("synthesize_pairs", "prompts"), ("prepare_reader_study", "  datasets"))  # fmt: skip
    for section, key in replaced:
        start = text.index(f"\n{section}:")
        place = text.index(f"\n  {key}:", start)
        text = text[:place] + f"\n  {key}: !replace" + text[place + len(f"\n  {key}:") :]
    (profiles / "own.yaml").write_text(text)


def cells(clone, table, ending):
    """(row, column) -> value of a table's cells in columns that end so."""
    built = json.loads((clone.folder / f"runs/own/tables/{table}.json").read_text())
    return {(c["row"], c["column"]): c["value"] for c in built["cells"] if c["column"].endswith(ending)}


def test_the_whole_path_on_folders_with_broken_files(tmp_path):
    clone = new_clone(tmp_path / "own")
    write_data(clone.folder / "data_in")
    folder_profile(clone)
    clone.switch("own")
    ran, _ = clone.repro()
    assert "record_tables" in ran
    pairs = clone.folder / "runs/own/data/pairs"
    with (pairs / "chest/quarantine.csv").open() as file:
        reasons = {row["item"].rpartition("/")[2]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == set(BROKEN)
    assert {name: reason for name, reason in reasons.items() if not reason.startswith(BROKEN[name])} == {}
    for dataset, kept in (("chest", len(CHEST)), ("histology", 2 * len(SLIDES))):
        rows = [pq.ParquetFile(pairs / dataset / f"{split}.parquet").metadata.num_rows for split in SPLITS]
        assert sum(rows) == kept and min(rows) > 0, (dataset, rows)
    for dataset, table in (("chest", "table1"), ("histology", "table2")):
        measured = [
            cells(clone, "table3", "BLEU-1 (coco)")["MeDiM", f"{dataset}/BLEU-1 (coco)"],
            cells(clone, table, "FID (phantom features)")["MeDiM", f"{dataset}/FID (phantom features)"],
            cells(clone, "mission", "vqgan/psnr")["MeDiM", f"{dataset}/vqgan/psnr"],
            cells(clone, "vqgan", "psnr")["VQGAN", f"{dataset}/psnr"],
        ]
        assert all(isinstance(value, float) and math.isfinite(value) for value in measured), (dataset, measured)
    found = cells(clone, "mission", "/finding_f1") | cells(clone, "table3", "/finding_f1")
    asked = {f"{name}/{task}/finding_f1" for name in ("chest", "histology") for task in TASKS}
    assert asked <= {column for row, column in found if row == "MeDiM"}
    assert set(found.values()) == {None}, "nobody knows the findings of imported pictures"
