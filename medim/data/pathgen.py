"""Imports PathGen-1.6M: captions with places on TCGA slides, or patches cut before, as pairs.

    list    the JSON lists of the data set: [{"wsi_id", "position": ["x", "y"], "caption", "file_id"}]; the patches are
            cut out of the slides here
    flat    MeDiM's folders {train,val,test}/<wsi>_<x>_<y>.png with a .txt of the same name beside each

As the data set's extraction script does (PathFoundation/PathGen-1.6M), a patch is 672 pixels a side at level 0,
whatever the slide's magnification. Differences: `WSI_id` and `wsi_id` are both read (the script's key is not that of
its own file); each slide is opened once; slides whose resolution is out of bounds and patches that lie outside of the
slide or are nearly white are quarantined. The patient is the first twelve characters of a TCGA barcode; splits are by
patient (random patches would put one slide on both sides).

An interrupted import goes on: the pairs of each slide are one Parquet file in a working folder, which is used again as
long as the slide's entries and the settings are the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medim.data.folder import ImportStats, draw_splits, label_of, parse_json
from medim.data.image_io import COLOURS, SUFFIXES, UnreadableImageError, read_picture, to_square
from medim.data.report_text import decode_report, decode_text, is_empty, one_line
from medim.data.splits import SPLITS
from medim.pairs import PAIR_SCHEMA, PROMPT_END, Pair, TableWriter, encode_png, iter_pairs

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".bif")
LAYOUTS, OVERLAPS = ("list", "flat"), ("refuse", "official")
WHITE = 220  # a pixel is white where all three channels are above it
FLAT_NAME = re.compile(r"(?P<slide>.+)_(?P<x>\d+)_(?P<y>\d+)")
Write = Callable[[str, Pair], None]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class PathGenSource:
    """Where captions and slides are and which patches are taken; all of it stands in params.yaml."""

    root: str  # folder; every other path is relative to it
    layout: str  # list | flat
    captions: str  # list: JSON file; flat: folder that holds train, test and perhaps val
    slides: str  # list: folder of the slides, searched to any depth
    patch: int  # list: pixels a side at level 0; the data set's is 672
    mpp_least: float  # list: micrometres a pixel at level 0 that a slide must have
    mpp_most: float
    white_most: float  # largest share of white pixels of a patch; 1 = any
    outside_most: float  # list: largest share of a patch that lies outside of the slide
    patient_characters: int  # leading characters of the slide's name that name the patient (TCGA: 12); 0 = all
    overlap: str  # refuse | official: flat: what happens when train and test share a patient
    prompt: str  # modality, e.g. "histology"
    background: str  # black | white | official
    fit: str  # pad | crop
    val: float  # share of patients (flat without a val folder: of train's patients)
    test: float  # list: share of patients

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: names the key, its value and what it may be.
        """
        for key, allowed in (("layout", LAYOUTS), ("overlap", OVERLAPS), ("background", tuple(COLOURS))):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}, got {getattr(self, key)!r}")
        if self.patch < 1 or not 0 < self.mpp_least <= self.mpp_most:
            raise ValueError(
                f"patch {self.patch} must be at least 1 and 0 < mpp_least {self.mpp_least} <= mpp_most {self.mpp_most}"
            )
        if PROMPT_END in self.prompt:
            raise ValueError(f"a prompt may not hold {PROMPT_END!r}, which ends it, got {self.prompt!r}")
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise ValueError(f"val {self.val} and test {self.test} must not be negative, and their sum below 1")


@dataclass(frozen=True)
class Entry:
    """A caption and its place: (x, y) of the patch's upper left corner at level 0. `number`: its place in the list."""

    number: int
    slide: str
    x: int
    y: int
    caption: str

    @property
    def name(self) -> str:
        """The name of its patch in MeDiM's flat layout."""
        return f"{self.slide}_{self.x}_{self.y}"


def read_entries(path: Path, stats: ImportStats) -> list[Entry]:
    """Entries of a PathGen JSON list; what cannot be used is quarantined in `stats`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no JSON list; names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"captions {path} are missing: set prepare_data.datasets.<name>.captions in params.yaml"
        )
    items = parse_json(path, decode_text(path.read_bytes())[0], 1)
    if not isinstance(items, list):
        raise ValueError(f"{path} must hold a list of objects with wsi_id, position and caption")
    entries, seen = [], set[tuple[str, int, int]]()
    for number, item in enumerate(items):
        entry = _entry(number, item)
        if isinstance(entry, str):
            stats.quarantined.append((f"{path.name} item {number + 1}", entry))
        elif (entry.slide.lower(), entry.x, entry.y) in seen:
            stats.quarantined.append((entry.name, "named twice"))
        elif is_empty(entry.caption):
            stats.quarantined.append((entry.name, "the report is empty"))
        else:
            seen.add((entry.slide.lower(), entry.x, entry.y))
            entries.append(entry)
    return entries


def _entry(number: int, item: Any) -> Entry | str:
    """The entry of one item, or why there is none."""
    if not isinstance(item, dict):
        return "no object"
    slide = str(item.get("wsi_id") or item.get("WSI_id") or "").strip()
    if not slide:
        return f"no wsi_id; there are {', '.join(sorted(map(str, item)))}"
    place = item.get("position")
    numbers = [str(part).strip() for part in place] if isinstance(place, list | tuple) else []
    if len(numbers) != 2 or not all(part.isascii() and part.isdigit() for part in numbers):
        return f"{slide}: position {place!r} is not x and y in pixels"
    return Entry(number, slide, int(numbers[0]), int(numbers[1]), one_line(str(item.get("caption") or "")))


def patient_of(slide: str, characters: int) -> str:
    """Patient of a slide: its first characters in upper case (lists write one barcode in both cases)."""
    return slide[: characters or None].upper()


def import_pathgen(
    dataset: str, source: PathGenSource, size: int, seed: int, write: Write, progress: Progress, work: Path
) -> ImportStats:
    """Hand every usable pair to `write(split, pair)`: slide by slide, or file by file.

    Args:
        dataset: its name.
        source: see `PathGenSource`.
        size: side of the pairs' pictures.
        seed: seed of the splits.
        write: gets (split, pair).
        progress: gets the number of entries done.
        work: folder for one Parquet file a slide, kept between attempts and removed at the end (list only).

    Raises:
        ImportError: OpenSlide is not installed; names the extra.
        FileNotFoundError: a folder or the list is missing.
        ValueError: nothing usable was found, or a patient stands in two folders of `flat` (unless official).
    """
    root = Path(source.root)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} is missing: set prepare_data.datasets.{dataset}.root in params.yaml")
    stats = ImportStats()
    if source.layout == "list":
        _import_list(dataset, source, size, seed, write, progress, work, stats)
    else:
        _import_flat(dataset, source, size, seed, write, progress, stats)
    if not stats.accepted:
        raise ValueError(f"{dataset}: {root} holds no usable pair (first rejected: {stats.quarantined[:3]})")
    for split in SPLITS:
        if not stats.accepted[split]:
            print(f"{dataset}: WARNING: the split {split} is empty", flush=True)
    return stats


def _import_list(
    dataset: str, source: PathGenSource, size: int, seed: int, write: Write, progress: Progress, work: Path,
    stats: ImportStats,
) -> None:  # fmt: skip
    root = Path(source.root)
    entries = read_entries(root / source.captions, stats)
    slides = find_slides(root / source.slides)
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.slide.lower(), []).append(entry)
    splits = draw_splits(
        {patient_of(entry.slide, source.patient_characters) for entry in entries}, source.val, source.test, seed
    )
    done = 0
    for name in sorted(groups):
        group = groups[name]
        if name not in slides:
            stats.quarantined += [(entry.name, "its slide is missing") for entry in group]
        else:
            file = _cut_slide(dataset, source, size, slides[name], group, work)
            stats.quarantined += json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            for pair in iter_pairs(file):
                write(splits[pair.patient_id], pair)
                stats.accepted[splits[pair.patient_id]] += 1
        done += len(group)
        progress(done)
    shutil.rmtree(work, ignore_errors=True)


def find_slides(folder: Path) -> dict[str, Path]:
    """Lower-case name without suffix -> slide, of all slides below a folder (GDC puts each into a folder of its own).

    Raises:
        FileNotFoundError: the folder is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"slides {folder} are missing: set prepare_data.datasets.<name>.slides in params.yaml")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SLIDE_SUFFIXES and path.is_file())
    return {path.stem.lower(): path for path in reversed(files)}


def _cut_slide(
    dataset: str, source: PathGenSource, size: int, path: Path, entries: Sequence[Entry], work: Path
) -> Path:
    """The Parquet file of a slide's pairs, made or there already; beside it a .json of what was quarantined."""
    made_of = [dataset, asdict(source), size, path.stat().st_size, [asdict(entry) for entry in entries]]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:20]
    file = work / f"{key}.parquet"
    if file.is_file():
        return file
    work.mkdir(parents=True, exist_ok=True)
    rejected: list[tuple[str, str]] = []
    with TableWriter(file, PAIR_SCHEMA) as writer:  # appears whole when it is done, after its .json
        for entry, pixels in _patches(source, path, entries, rejected):
            picture = to_square(Image.fromarray(pixels, "RGB"), size, COLOURS[source.background], source.fit)
            writer.write(vars(_pair(dataset, source, entry, entry.name, encode_png(picture))))
        file.with_suffix(".json").write_text(json.dumps(rejected), encoding="utf-8")
    return file


def _pair(dataset: str, source: PathGenSource, entry: Entry, label: str, picture: bytes) -> Pair:
    patient = patient_of(entry.slide, source.patient_characters)
    pair_id = f"{dataset}-{entry.number:07d}"
    return Pair(pair_id, entry.slide, patient, dataset, label, picture, source.prompt, entry.caption)


def _patches(
    source: PathGenSource, path: Path, entries: Sequence[Entry], rejected: list[tuple[str, str]]
) -> Iterator[tuple[Entry, NDArray[np.uint8]]]:
    """Patches (patch, patch, 3) uint8 of a slide's entries; what is not usable goes to `rejected`."""
    try:
        import openslide
    except ImportError as error:
        raise ImportError(f"slides need OpenSlide ({error}): run `MEDIM_EXTRAS=dev,medical ./setup`") from error
    try:
        slide = openslide.OpenSlide(str(path))
    except openslide.OpenSlideError as error:
        rejected += [(entry.name, f"its slide cannot be read ({error})") for entry in entries]
        return
    try:
        reason = resolution_reason(slide.properties, source.mpp_least, source.mpp_most)
        if reason:
            rejected += [(entry.name, reason) for entry in entries]
            return
        for entry in entries:
            try:
                region = np.asarray(slide.read_region((entry.x, entry.y), 0, (source.patch, source.patch)))
            except openslide.OpenSlideError as error:
                rejected.append((entry.name, f"cannot be decoded ({error})"))
                slide.close()
                slide = openslide.OpenSlide(str(path))  # after an error a handle gives nothing but that error
                continue
            reason = patch_reason(region, source.white_most, source.outside_most)
            if reason:
                rejected.append((entry.name, reason))
            else:
                yield entry, on_background(region, COLOURS[source.background])
    finally:
        slide.close()


def resolution_reason(properties: Mapping[str, str], least: float, most: float) -> str:
    """Why a slide's micrometres a pixel do not fit [least, most]; "" where they do."""
    values = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    if None in values:
        return "its slide does not say its micrometres a pixel"
    mpp = [float(str(value)) for value in values]
    if all(least <= value <= most for value in mpp):
        return ""
    return f"its slide has {mpp[0]:g} x {mpp[1]:g} micrometres a pixel, outside of {least:g} to {most:g}"


def patch_reason(region: NDArray[np.uint8], white_most: float, outside_most: float) -> str:
    """Why an RGBA patch (P, P, 4) is not taken; "" where it is. White counts among the pixels inside of the slide."""
    inside = region[..., 3] > 0
    outside = 1 - float(inside.mean())
    if outside > outside_most or not inside.any():
        return f"{100 * outside:.0f} % of it lie outside of the slide"
    return white_reason(region[inside][:, :3], white_most)


def white_reason(pixels: NDArray[np.uint8], white_most: float) -> str:
    """Why RGB pixels (…, 3) are too white; "" where they are not."""
    white = float((pixels > WHITE).all(axis=-1).mean())
    return f"{100 * white:.0f} % of it are white" if white > white_most else ""


def on_background(region: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """RGBA (P, P, 4) -> RGB (P, P, 3) on a colour."""
    below = Image.new("RGBA", (region.shape[1], region.shape[0]), (*colour, 255))
    return np.asarray(Image.alpha_composite(below, Image.fromarray(region, "RGBA")).convert("RGB"), dtype=np.uint8)


def _import_flat(
    dataset: str, source: PathGenSource, size: int, seed: int, write: Write, progress: Progress, stats: ImportStats
) -> None:
    root, folder = Path(source.root), Path(source.root) / source.captions
    found = [(split, path) for split in SPLITS for path in _flat_pictures(folder / split)]
    splits = _flat_splits(dataset, source, found, seed)
    for number, (split, path) in enumerate(found):
        label, text = label_of(path, root), path.with_suffix(".txt")
        named = FLAT_NAME.fullmatch(path.stem)
        report, cp1252 = decode_report(text.read_bytes()) if text.is_file() else ("", False)
        reason = "" if named else "its name is not <wsi>_<x>_<y>"
        if not reason and is_empty(report):
            reason = "the report is empty" if text.is_file() else f"no report: {text.name} is missing"
        pixels: NDArray[np.uint8] | None = None
        if not reason:
            try:
                pixels = read_picture(path, size, source.background, source.fit)
                reason = white_reason(pixels, source.white_most)
            except UnreadableImageError as error:
                reason = str(error)
        if named is None or pixels is None or reason:
            stats.quarantined.append((label, reason))
        else:
            entry = Entry(number, named["slide"], int(named["x"]), int(named["y"]), report)
            pair = _pair(dataset, source, entry, label, encode_png(pixels))
            taken = splits.get(pair.patient_id, split) if split == "train" else split
            write(taken, pair)
            stats.accepted[taken] += 1
            stats.cp1252 += cp1252
        progress(number + 1)


def _flat_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _flat_splits(dataset: str, source: PathGenSource, found: Sequence[tuple[str, Path]], seed: int) -> dict[str, str]:
    """Patient of train -> train, or val where there is no val folder; refuses patients of two folders."""
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split, path in found:
        named = FLAT_NAME.fullmatch(path.stem)
        if named:
            patients[split].add(patient_of(named["slide"], source.patient_characters))
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(patients[first] & patients[second])
        message = f"{dataset}: {len(shared)} patients stand in both {first} and {second} (first: {shared[:3]})"
        if shared and source.overlap == "refuse":
            place = f"params.yaml:prepare_data.datasets.{dataset}.overlap"
            raise ValueError(f"{message}. Set {place} to official to take these folders as they are")
        if shared:
            print(message, flush=True)
    return draw_splits(patients["train"], 0.0 if patients["val"] else source.val, 0.0, seed)
