"""Pictures and reports of one's own: the whole graph on folders, with broken files among them."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from worlds import SMALL, merged_mappings, new_clone

from pipeline.params_file import parse_yaml

pytestmark = pytest.mark.slow

CHEST = [  # patient, note
    ("1", "Clear lungs. No effusion."), ("1", "Small left effusion."), ("2", "Right consolidation."),
    ("3", "Enlarged heart, clear lungs."), ("4", "Normal chest film."), ("5", "Left pneumothorax, tube in place."),
    ("6", "Bilateral opacities, worse than before."), ("7", "Clear lungs."), ("8", "Right basal atelectasis."),
]  # fmt: skip
BROKEN = {
    "truncated.jpg": "cannot be decoded",
    "empty.jpg": "file is empty",
    "text.jpg": "not a picture",
    "missing.jpg": "missing",
    "silent.jpg": "no report",
}
SLIDES = [f"TCGA-{number}-slide" for number in range(8)]


def picture(path, seed):
    """A picture of its own for every seed, 40 pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((40, 40), Image.Resampling.BICUBIC).save(path)


def write_data(root):
    """`chest`: a table beside its pictures, five of its rows unusable; `histology`: one folder and caption a slide."""
    rows = [(f"{number}.jpg", note, patient) for number, (patient, note) in enumerate(CHEST)]
    for number, (name, _, _) in enumerate(rows):
        picture(root / "chest/images" / name, number)
    folder = root / "chest/images"
    picture(folder / "truncated.jpg", 90)
    (folder / "truncated.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:400])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no picture")
    picture(folder / "silent.jpg", 91)
    rows += [(name, "" if name == "silent.jpg" else "Clear lungs.", f"b{name}") for name in BROKEN]
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
    merged["prepare_data"]["datasets"] = data
    merged |= {"profile": "own", "world": "own"}
    text = yaml.safe_dump(merged, sort_keys=False)
    for section, key in (("prepare_data", "datasets"), ("evaluate", "datasets"), ("train_baseline", "settings")):
        start = text.index(f"\n{section}:")
        place = text.index(f"\n  {key}:", start)
        text = text[:place] + f"\n  {key}: !replace" + text[place + len(f"\n  {key}:") :]
    (profiles / "own.yaml").write_text(text)


def cells(clone, table, ending):
    """Column -> value of MeDiM's cells in columns that end so."""
    built = json.loads((clone.folder / f"runs/own/tables/{table}.json").read_text())
    return {
        c["column"]: c["value"]
        for c in built["cells"]
        if c["row"] in ("MeDiM", "VQGAN") and c["column"].endswith(ending)
    }


def test_the_whole_path_on_folders_with_broken_files(tmp_path):
    clone = new_clone(tmp_path / "own")
    write_data(clone.folder / "data_in")
    folder_profile(clone)
    clone.switch("own")
    ran, _ = clone.repro()
    assert "record_tables" in ran
    with (clone.folder / "runs/own/data/pairs/chest/quarantine.csv").open() as file:
        reasons = {row["item"].rpartition("/")[2]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == set(BROKEN)
    for name, reason in BROKEN.items():
        assert reason in reasons[name], (name, reasons[name])
    for dataset, table in (("chest", "table1"), ("histology", "table2")):
        assert cells(clone, "table3", f"{dataset}/BLEU-1 (coco)")[f"{dataset}/BLEU-1 (coco)"] is not None
        assert cells(clone, table, "FID (phantom features)")[f"{dataset}/FID (phantom features)"] is not None
        assert cells(clone, "vqgan", "psnr")[f"{dataset}/psnr"] is not None
    found = cells(clone, "mission", "finding_f1")
    assert len(found) >= 6 and set(found.values()) == {None}
