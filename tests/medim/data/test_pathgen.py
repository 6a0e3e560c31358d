import json
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_slides import write_slide

from medim.data.folder import ImportStats
from medim.data.pathgen import (
    PathGenSource,
    find_slides,
    import_pathgen,
    on_background,
    patch_reason,
    read_entries,
    resolution_reason,
)
from medim.data.preparation import prepare_dataset
from medim.pairs import decode_png, read_pairs

openslide = pytest.importorskip("openslide")

REAL = Path(__file__).parents[3] / "../shared/realdata"
BASE = PathGenSource(
    root="", layout="list", captions="captions.json", slides="slides", patch=32, mpp_least=0.2, mpp_most=0.6,
    white_most=0.8, outside_most=0.1, patient_characters=12, overlap="refuse", prompt="histology", background="white",
    fit="pad", val=0.2, test=0.2,
)  # fmt: skip
SLIDES = [f"TCGA-AA-{number:04d}-01Z-00-DX1.{letter * 8}" for number, letter in enumerate("ABCDE")]


def tissue(number: int) -> np.ndarray:
    """(96, 128, 3): every place has a colour of its own; the right end is white."""
    rows, columns = np.mgrid[0:96, 0:128]
    pixels = np.stack([rows, columns, np.full_like(rows, 20 * number)], axis=-1).astype(np.uint8)
    pixels[:, 96:] = 240
    return pixels


def entry(slide, x, y, caption="Glands.", **more):
    return {"wsi_id": slide, "position": [str(x), str(y)], "caption": caption} | more


def slides(root: Path, items, mpp=0.5) -> PathGenSource:
    for number, name in enumerate(SLIDES):
        write_slide(root / "slides" / f"uuid-{number}" / f"{name}.svs", tissue(number), mpp)
    (root / "captions.json").write_text(json.dumps(items))
    return replace(BASE, root=str(root))


def run(source, work, size=32):
    found, progress = defaultdict(list), []
    stats = import_pathgen("pg", source, size, 0, lambda split, pair: found[split].append(pair), progress.append, work)
    return found, stats, progress


def everything(found):
    return sorted((pair for pairs in found.values() for pair in pairs), key=lambda pair: pair.pair_id)


def test_patches_are_cut_at_their_place_at_level_0(tmp_path):
    items = [entry(name, 10 + n, 20, f"Caption {n}.") for n, name in enumerate(SLIDES)] + [
        entry(SLIDES[0].lower(), 40, 5)
    ]
    found, stats, progress = run(slides(tmp_path, items), tmp_path / "work")
    pairs = everything(found)
    assert [pair.report for pair in pairs] == [*(f"Caption {n}." for n in range(5)), "Glands."]
    for number, pair in enumerate(pairs[:5]):
        assert np.array_equal(decode_png(pair.image), tissue(number)[20:52, 10 + number : 42 + number])
        assert pair.source == f"{SLIDES[number]}_{10 + number}_20" and pair.study_id == SLIDES[number]
    assert np.array_equal(decode_png(pairs[5].image), tissue(0)[5:37, 40:72])
    assert pairs[5].patient_id == "TCGA-AA-0000" == pairs[0].patient_id, "one barcode in both cases is one patient"
    assert Counter({split: len({p.patient_id for p in group}) for split, group in found.items()}) == {
        "train": 3, "val": 1, "test": 1,
    }  # fmt: skip
    assert sum(stats.accepted.values()) == 6 == progress[-1] and not stats.quarantined
    assert not (tmp_path / "work").exists(), "the working folder is cleared at the end"


def test_both_keys_and_what_cannot_be_used(tmp_path):
    items = [
        {"WSI_id": SLIDES[0], "position": ["0", "0"], "caption": "Old key.", "file_id": "u-1"},
        entry(SLIDES[0], 0, 0), entry(SLIDES[0], -1, 0), entry(SLIDES[0], 1, 1, " "), {"wsi_id": SLIDES[0]},
        {"position": ["1", "1"]}, "text", entry(SLIDES[0], 5, 5) | {"position": [5, 5]},
    ]  # fmt: skip
    source, stats = slides(tmp_path, items), ImportStats()
    entries = read_entries(tmp_path / source.captions, stats)
    assert [(one.number, one.x, one.caption) for one in entries] == [(0, 0, "Old key."), (7, 5, "Glands.")]
    assert stats.quarantined == [
        (f"{SLIDES[0]}_0_0", "named twice"),
        ("captions.json item 3", f"{SLIDES[0]}: position ['-1', '0'] is not x and y in pixels"),
        (f"{SLIDES[0]}_1_1", "the report is empty"),
        ("captions.json item 5", f"{SLIDES[0]}: position None is not x and y in pixels"),
        ("captions.json item 6", "no wsi_id; there are position"),
        ("captions.json item 7", "no object"),
    ]


def test_white_outside_missing_and_unreadable(tmp_path):
    items = [entry(SLIDES[0], 90, 0), entry(SLIDES[0], 0, 90), entry(SLIDES[0], 0, 500), entry("TCGA-ZZ-0000.x", 0, 0),
             entry(SLIDES[1], 0, 0), entry(SLIDES[2], 0, 0)]  # fmt: skip
    source = slides(tmp_path, items)
    next((tmp_path / "slides").rglob(f"{SLIDES[1]}.svs")).write_bytes(b"no slide")
    found, stats, _ = run(replace(source, val=0.0, test=0.0), tmp_path / "work")
    assert [pair.source for pair in everything(found)] == [f"{SLIDES[2]}_0_0"]
    reasons = dict(stats.quarantined)
    assert reasons[f"{SLIDES[0]}_90_0"] == "81 % of it are white"
    assert reasons[f"{SLIDES[0]}_0_90"] == "81 % of it lie outside of the slide"
    assert reasons[f"{SLIDES[0]}_0_500"] == "100 % of it lie outside of the slide"
    assert reasons["TCGA-ZZ-0000.x_0_0"] == "its slide is missing"
    assert reasons[f"{SLIDES[1]}_0_0"].startswith("its slide cannot be read (")
    assert len(reasons) == 5


@pytest.mark.parametrize(("mpp", "reason"), [(1.0, "its slide has 1 x 1 micrometres"), (None, "does not say")])
def test_a_slide_of_another_resolution_is_not_cut(tmp_path, mpp, reason):
    source = slides(tmp_path, [entry(SLIDES[0], 0, 0)], mpp)
    with pytest.raises(ValueError, match=f"no usable pair.*{reason}"):
        run(source, tmp_path / "work")


def test_resolution_of_both_axes():
    assert resolution_reason({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}, 0.2, 0.6) == ""
    assert "0.25 x 0.9" in resolution_reason({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.9"}, 0.2, 0.6)


def test_white_counts_inside_of_the_slide_only():
    region = np.full((4, 4, 4), 255, np.uint8)
    region[:2, :, :3] = 100
    assert patch_reason(region, 0.5, 0.0) == "" and patch_reason(region, 0.4, 0.0) == "50 % of it are white"
    region[2:, :, 3] = 0
    assert patch_reason(region, 0.0, 0.5) == ""
    assert np.array_equal(on_background(region, (1, 2, 3))[3, 3], (1, 2, 3))


def test_an_interrupted_import_goes_on_where_it_stopped(tmp_path, monkeypatch):
    items = [entry(name, x, 0) for name in SLIDES for x in (0, 16)]
    source, opened = slides(tmp_path, items), []

    class Counting(openslide.OpenSlide):
        def __init__(self, filename):
            opened.append(Path(filename).stem)
            super().__init__(filename)

    monkeypatch.setattr(openslide, "OpenSlide", Counting)
    taken = []

    def stop(split, pair):
        taken.append(pair)
        if len(taken) == 5:  # the third slide is cut by now, and its pairs are being handed on
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_pathgen("pg", source, 32, 0, stop, lambda done: None, tmp_path / "work")
    assert len(opened) == 3
    opened.clear()
    found, stats, _ = run(source, tmp_path / "work")
    assert opened == sorted(SLIDES)[3:] and sum(stats.accepted.values()) == 10
    opened.clear()
    again, _, _ = run(source, tmp_path / "other")
    assert len(opened) == 5 and everything(again) == everything(found), "each slide is opened once"


def test_changed_settings_cut_anew(tmp_path):
    source = slides(tmp_path, [entry(SLIDES[0], 0, 0), entry(SLIDES[1], 0, 0), entry(SLIDES[2], 0, 0)])

    def stop(split, pair):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_pathgen("pg", source, 32, 0, stop, lambda done: None, tmp_path / "work")
    found, _, _ = run(replace(source, patch=16), tmp_path / "work", size=16)
    assert np.array_equal(decode_png(everything(found)[0].image), tissue(0)[:16, :16])


def test_slides_are_found_at_any_depth_in_any_case(tmp_path):
    write_slide(tmp_path / "a" / "b" / "X.SVS", tissue(0), 0.5)
    (tmp_path / "notes.txt").write_text("no slide")
    assert find_slides(tmp_path) == {"x": tmp_path / "a" / "b" / "X.SVS"}
    with pytest.raises(FileNotFoundError, match=r"datasets\.<name>\.slides"):
        find_slides(tmp_path / "none")


def test_a_missing_openslide_is_named_with_its_extra(tmp_path, monkeypatch):
    source = slides(tmp_path, [entry(SLIDES[0], 0, 0)])
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ImportError, match=r"MEDIM_EXTRAS=dev,medical \./setup"):
        run(source, tmp_path / "work")


def test_it_is_a_data_set_like_others(tmp_path):
    source = slides(tmp_path / "in", [entry(name, x, 0) for name in SLIDES for x in (0, 16, 90)])
    counts = prepare_dataset("pg", source, 32, 0, tmp_path / "out")
    assert sum(counts.values()) == 10 and counts["train"] == 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "quarantine.csv", "test.parquet", "train.parquet", "val.parquet",
    ]  # fmt: skip
    assert len((tmp_path / "out/quarantine.csv").read_text().splitlines()) == 6
    assert {pair.dataset for pair in read_pairs(tmp_path / "out/train.parquet")} == {"pg"}


def flat(root: Path, names) -> PathGenSource:
    """MeDiM's folders: split/<wsi>_<x>_<y>.png with a .txt beside it."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"Caption {number}.")
    return replace(BASE, root=str(root), layout="flat", captions="", val=0.0, test=0.0)


def test_medims_flat_folders(tmp_path):
    source = flat(
        tmp_path, [f"train/{SLIDES[0]}_96_128.png", f"train/{SLIDES[1]}.png.x_5_6.png", f"test/{SLIDES[2]}_0_0.png"]
    )
    (tmp_path / "train/notes.png").write_bytes((tmp_path / f"test/{SLIDES[2]}_0_0.png").read_bytes())
    (tmp_path / f"test/{SLIDES[3]}_1_1.png").write_bytes(b"broken")
    (tmp_path / f"test/{SLIDES[3]}_1_1.txt").write_text("A caption.")
    (tmp_path / f"test/{SLIDES[4]}_1_1.png").write_bytes((tmp_path / f"test/{SLIDES[2]}_0_0.png").read_bytes())
    found, stats, _ = run(source, tmp_path / "work")
    assert [(pair.report, pair.study_id, pair.patient_id) for pair in found["train"]] == [
        ("Caption 0.", SLIDES[0], "TCGA-AA-0000"), ("Caption 1.", f"{SLIDES[1]}.png.x", "TCGA-AA-0001"),
    ]  # fmt: skip
    assert [pair.source for pair in found["test"]] == [f"test/{SLIDES[2]}_0_0.png"]
    assert stats.quarantined == [
        ("train/notes.png", "its name is not <wsi>_<x>_<y>"),
        (f"test/{SLIDES[3]}_1_1.png", "not a picture"),
        (f"test/{SLIDES[4]}_1_1.png", f"no report: {SLIDES[4]}_1_1.txt is missing"),
    ]


def test_validation_patients_are_drawn_from_train_where_there_is_no_val_folder(tmp_path):
    names = [f"train/{name}_{x}_0.png" for name in SLIDES for x in (0, 1)]
    found, _, _ = run(replace(flat(tmp_path, [*names, "test/TCGA-BB-0000-x_0_0.png"]), val=0.2), tmp_path / "work")
    patients = {split: {pair.patient_id for pair in pairs} for split, pairs in found.items()}
    assert {split: len(pairs) for split, pairs in found.items()} == {"train": 8, "val": 2, "test": 1}
    assert not patients["train"] & patients["val"]


def test_folders_that_share_a_patient(tmp_path, capsys):
    source = flat(tmp_path, [f"train/{SLIDES[0]}_0_0.png", f"test/{SLIDES[0]}_9_9.png"])
    with pytest.raises(ValueError, match=r"1 patients stand in both train and test \(first: \['TCGA-AA-0000'\]\)"):
        run(source, tmp_path / "work")
    found, _, _ = run(replace(source, overlap="official"), tmp_path / "work")
    assert len(found["test"]) == 1 and "1 patients stand in both" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "zip"}, "layout must be one of list, flat"),
        ({"mpp_least": 0.0}, "mpp_least 0.0"),
        ({"patch": 0}, "patch 0 must be at least 1"),
        ({"background": "pink"}, "background must be one of"),
        ({"prompt": "a: b"}, "may not hold"),
        ({"val": 0.5, "test": 0.5}, "their sum below 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)


@pytest.mark.skipif(not REAL.is_dir(), reason="real sample data is not here")
def test_the_real_list():
    stats = ImportStats()
    entries = read_entries(REAL / "pathgen/PathGen-1.6M_sample.json", stats)
    assert len(entries) == 2242 and not stats.quarantined
    assert all(one.slide.startswith("TCGA-") and one.x >= 0 for one in entries)
    assert len({one.slide.lower() for one in entries}) < 2242, "some slides have several"


@pytest.mark.skipif(not REAL.is_dir(), reason="real sample data is not here")
def test_a_real_slide_at_the_papers_size(tmp_path):
    (tmp_path / "slides").symlink_to((REAL / "wsi").resolve())
    places = [(x, y) for y in range(0, 2300, 750) for x in range(0, 1600, 750)] + [(2000, 2900)]
    items = [entry("CMU-1-Small-Region", x, y) for x, y in places]
    (tmp_path / "captions.json").write_text(json.dumps(items))
    source = replace(BASE, root=str(tmp_path), patch=672, white_most=0.9, val=0.0, test=0.0)
    found, stats, _ = run(source, tmp_path / "work", size=64)
    with openslide.OpenSlide(str(REAL / "wsi/CMU-1-Small-Region.svs")) as slide:
        assert 0.2 < float(slide.properties["openslide.mpp-x"]) < 0.6
    assert len(found["train"]) + len(stats.quarantined) == len(places) and len(found["train"]) >= 6
    assert "lie outside of the slide" in dict(stats.quarantined)["CMU-1-Small-Region_2000_2900"]
    assert all(np.ptp(decode_png(pair.image)) > 50 for pair in found["train"])
