"""Tiny data sets in the very layouts of IU-Xray and MIMIC-CXR, written by the tests themselves."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="{uid}"/>
   <MedlineCitation Owner="Indiana University" Status="supplied by publisher">
      <Article PubModel="Electronic"><Abstract>
{sections}
      </Abstract></Article>
   </MedlineCitation>
   <MeSH><major>normal</major></MeSH>
{images}
</eCitation>
"""


def picture(path: Path, grey: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.tile(np.arange(16, dtype=np.uint8)[:, None, None] + grey, (1, 16, 3))).save(path)


def item(name, report, images, **more):
    return {"id": name, "report": report, "image_path": images} | more


def annotation(path: Path, **splits) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(splits))
    return path


def iu_item(number, report, split, root=None):
    """An item as R2Gen's file has it: a folder a study with 0.png and 1.png."""
    name = f"CXR{number}_IM-{number:04d}"
    images = [f"{name}/0.png", f"{name}/1.png"]
    for order, image in enumerate(images if root is not None else []):
        picture(root / "images" / image, 40 + 60 * order)
    return item(name, report, images, split=split)


def openi_xml(path: Path, uid: str, sections: dict, images=()) -> None:
    """A report file of Open-i; a section that is None is not there, one that is "" is an empty element."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = "\n".join(
        f'<AbstractText Label="{label}">{text}</AbstractText>' if text else f'<AbstractText Label="{label}"/>'
        for label, text in sections.items()
        if text is not None
    )
    shown = "\n".join(
        f'<parentImage id="{name}"><figureId>F1</figureId><panel><url>/x/{name}.jpg</url></panel></parentImage>'
        for name in images
    )
    path.write_text(XML.format(uid=uid, sections=texts, images=shown))


def kaggle(root: Path, reports, projections) -> None:
    """indiana_reports.csv of (uid, findings, impression) and indiana_projections.csv of (uid, filename, projection)."""
    with (root / "indiana_reports.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"])
        for uid, findings, impression in reports:
            writer.writerow(
                [uid, "normal", "normal", "Xray Chest PA and Lateral", "pain", "None.", findings, impression]
            )
    with (root / "indiana_projections.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "filename", "projection"])
        writer.writerows(projections)
