from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from study_files import annotation, item, iu_item, kaggle, openi_xml, picture

from medim.baselines.published_r2gen import published_words
from medim.data.iu_xray import StudySource, copied_reports, find_picture, import_studies, read_studies, text_key
from medim.data.preparation import prepare_dataset
from medim.pairs import decode_png, read_pairs

REAL = Path(__file__).parents[3] / "../shared/realdata"
BASE = StudySource(
    root="", layout="annotation", reports="annotation.json", views_table="", image_folder="images", views="single",
    section="given", cleaning="plain", test_duplicates="keep", overlap="refuse", prompt="chest x-ray",
    background="black", fit="pad", val=0.0, test=0.0,
)  # fmt: skip


def run(source: StudySource, seed: int = 0):
    found, progress = defaultdict(list), []
    stats = import_studies("iu", source, 16, seed, lambda split, pair: found[split].append(pair), progress.append)
    return found, stats, progress


def iu(root: Path, **reports) -> StudySource:
    """A data set as R2Gen has it: split -> reports, two pictures a study."""
    number, splits = 0, {}
    for split, texts in reports.items():
        splits[split] = []
        for text in texts:
            number += 1
            splits[split].append(iu_item(number, text, split, root))
    annotation(root / "annotation.json", **splits)
    return replace(BASE, root=str(root))


def test_one_picture_a_study(tmp_path):
    found, stats, progress = run(iu(tmp_path, train=["Clear.", "Small  effusion."], val=["Mass."], test=["Clear."]))
    assert {split: [pair.report for pair in pairs] for split, pairs in found.items()} == {
        "train": ["Clear.", "Small effusion."], "val": ["Mass."], "test": ["Clear."],
    }  # fmt: skip
    first = found["train"][0]
    assert (first.pair_id, first.study_id, first.patient_id) == ("iu-000000", "CXR1_IM-0001", "CXR1")
    assert first.source == "images/CXR1_IM-0001/0.png" and first.prompt == "chest x-ray"
    assert decode_png(first.image).mean() < 60, "0.png is the darker one"
    assert stats.accepted == {"train": 2, "val": 1, "test": 1} and progress == [1, 2, 3, 4]
    assert stats.sections == {"given": 4} and not stats.quarantined


def test_all_pictures_share_their_study(tmp_path):
    found, _, _ = run(replace(iu(tmp_path, train=["Clear.", "Mass."]), views="all"))
    assert [(pair.pair_id, pair.study_id, pair.source[-5:]) for pair in found["train"]] == [
        ("iu-000000-0", "CXR1_IM-0001", "0.png"), ("iu-000000-1", "CXR1_IM-0001", "1.png"),
        ("iu-000001-0", "CXR2_IM-0002", "0.png"), ("iu-000001-1", "CXR2_IM-0002", "1.png"),
    ]  # fmt: skip
    assert len({pair.image for pair in found["train"]}) == 2


def flat(root: Path) -> StudySource:
    """Flat names, one to three pictures, views in a table."""
    names = {1: ["CXR1_IM-1-1001.png", "CXR1_IM-1-2001.png"], 2: ["CXR2_IM-2-2001.png"], 3: ["CXR3_IM-3-1001.png"]}
    for shown in names.values():
        for order, name in enumerate(shown):
            picture(root / "images" / name, 40 + 60 * order)
    items = [item(str(uid), "Clear.", shown) for uid, shown in names.items()]
    annotation(root / "annotation.json", train=items)
    views = "1,1_IM-1-1001.dcm.png,Lateral\n1,1_IM-1-2001.dcm.png,Frontal\n2,2_IM-2-2001.dcm.png,Lateral\n"
    (root / "views.csv").write_text("uid,filename,projection\n" + views)
    return replace(BASE, root=str(root), views_table="views.csv")


def test_frontal_pictures_only(tmp_path):
    found, stats, _ = run(replace(flat(tmp_path), views="frontal"))
    assert [pair.source for pair in found["train"]] == ["images/CXR1_IM-1-2001.png"]
    assert stats.quarantined == [
        ("2", "no frontal picture"),
        ("3", "no frontal picture is known: give views_table, or views: single"),
    ]


def test_single_is_the_frontal_one_where_it_is_known(tmp_path):
    found, _, _ = run(flat(tmp_path))
    assert [pair.source for pair in found["train"]] == [
        "images/CXR1_IM-1-2001.png", "images/CXR2_IM-2-2001.png", "images/CXR3_IM-3-1001.png",
    ]  # fmt: skip
    assert [pair.patient_id for pair in found["train"]] == ["CXR1", "CXR2", "CXR3"]


def test_missing_and_broken_pictures_are_named_and_the_study_is_kept(tmp_path):
    source = iu(tmp_path, train=["Clear.", "Mass.", "Edema."], test=["Clear."])
    images = tmp_path / "images"
    (images / "CXR1_IM-0001/0.png").write_bytes(b"<html>not found</html>")
    (images / "CXR2_IM-0002/0.png").unlink()
    (images / "CXR2_IM-0002/1.png").unlink()
    found, stats, _ = run(source)
    assert [pair.source for pair in found["train"]] == ["images/CXR1_IM-0001/1.png", "images/CXR3_IM-0003/0.png"]
    assert stats.quarantined == [
        ("images/CXR1_IM-0001/0.png", "not a picture"),
        ("images/CXR2_IM-0002/0.png", "file is missing"),
        ("images/CXR2_IM-0002/1.png", "file is missing"),
    ]


def test_empty_reports_and_pictures_named_twice(tmp_path):
    picture(tmp_path / "images/CXR1_IM-1-1.png")
    items = [item("CXR1_IM-1", "Clear.", ["CXR1_IM-1-1.png"]), item("CXR1_IM-2", "Again.", ["CXR1_IM-1-1.png"]),
             item("CXR2_IM-1", " N/A ", ["x.png"]), item("CXR3_IM-1", None, ["x.png"])]  # fmt: skip
    annotation(tmp_path / "annotation.json", train=items)
    found, stats, _ = run(replace(BASE, root=str(tmp_path)))
    assert len(found["train"]) == 1
    assert stats.quarantined == [
        ("CXR2_IM-1", "the report is empty"), ("CXR3_IM-1", "the report is empty"),
        ("images/CXR1_IM-1-1.png", "named twice"),
    ]  # fmt: skip


def test_another_suffix_of_the_same_picture_is_found(tmp_path):
    picture(tmp_path / "a" / "x.JPG")
    assert find_picture(tmp_path / "a", "x.png") == tmp_path / "a" / "x.JPG"
    assert find_picture(tmp_path / "a", "y.png") == tmp_path / "a" / "y.png"


def test_reports_are_cleaned_as_asked(tmp_path):
    source = iu(tmp_path, train=["1. A 1.5 cm nodule. 2. No edema."])
    assert run(source)[0]["train"][0].report == "1. A 1.5 cm nodule. 2. No edema."
    cleaned = run(replace(source, cleaning="r2gen"))[0]["train"][0].report
    assert cleaned == "a 15 cm nodule . no edema ."


def test_copied_reports_are_counted_and_may_be_left_out(tmp_path, capsys):
    source = iu(tmp_path, train=["Heart size: normal.", "Mass."], val=["Edema."],
                test=["heart  size normal", "Mass!", "New."])  # fmt: skip
    found, stats, _ = run(source)
    assert len(found["test"]) == 3 and stats.copied == {"val": (0, 1), "test": (2, 3)}
    assert "iu: 2 of 3 test reports (67 %) stand word for word in train" in capsys.readouterr().out
    found, stats, _ = run(replace(source, test_duplicates="drop"))
    assert [pair.report for pair in found["test"]] == ["New."] and len(found["train"]) == 2
    assert stats.quarantined == [
        (name, "the report stands word for word in train") for name in ("CXR4_IM-0004", "CXR5_IM-0005")
    ]
    assert text_key("Heart-size: NORMAL.") == "heart size normal"


def leaking(root: Path) -> StudySource:
    for name in ("CXR1_IM-1/0.png", "CXR1_IM-2/0.png", "CXR2_IM-1/0.png"):
        picture(root / "images" / name, 30 + 9 * len(list(root.rglob("*.png"))))
    annotation(root / "annotation.json", train=[item("CXR1_IM-1", "Clear.", ["CXR1_IM-1/0.png"])],
               val=[item("CXR2_IM-1", "Mass.", ["CXR2_IM-1/0.png"])],
               test=[item("CXR1_IM-2", "Edema.", ["CXR1_IM-2/0.png"])])  # fmt: skip
    return replace(BASE, root=str(root))


def test_a_patient_in_two_splits_is_an_error_unless_asked_for(tmp_path, capsys):
    source = leaking(tmp_path)
    with pytest.raises(ValueError, match=r"1 patients stand in both train and test \(first: \['CXR1'\]\).*iu\.overlap"):
        run(source)
    with pytest.raises(ValueError, match="train and test"):
        prepare_dataset("iu", source, 16, 0, tmp_path / "out")
    counts = prepare_dataset("iu", replace(source, overlap="official"), 16, 0, tmp_path / "out")
    assert counts == {"train": 1, "val": 1, "test": 1}
    assert "1 patients stand in both train and test" in capsys.readouterr().out


def test_it_is_a_data_set_like_others(tmp_path):
    source = iu(tmp_path / "in", train=["Clear.", "XXXX mass."], val=["Edema."], test=["New."])
    counts = prepare_dataset("iu", source, 16, 0, tmp_path / "out")
    assert counts == {"train": 2, "val": 1, "test": 1}
    assert [pair.report for pair in read_pairs(tmp_path / "out/train.parquet")] == ["Clear.", "XXXX mass."]
    assert (tmp_path / "out/quarantine.csv").read_text().splitlines() == ["item,reason"]


def test_openi_files_with_drawn_splits(tmp_path, capsys):
    for uid in range(1, 21):
        sections = {"FINDINGS": f"Report {uid} XXXX." if uid % 2 else None, "IMPRESSION": f"Impression {uid}."}
        openi_xml(tmp_path / f"ecgen-radiology/{uid}.xml", f"CXR{uid}", sections, [f"CXR{uid}_{uid}_IM-1-1"])
        picture(tmp_path / f"png/CXR{uid}_{uid}_IM-1-1.png", uid)
    source = replace(BASE, root=str(tmp_path), layout="openi", reports="ecgen-radiology", image_folder="png",
                     section="findings_or_impression", val=0.2, test=0.2)  # fmt: skip
    found, stats, _ = run(source)
    assert {split: len(pairs) for split, pairs in found.items()} == {"train": 12, "val": 4, "test": 4}
    assert stats.sections == {"findings": 10, "impression": 10} and stats.redacted == 10
    assert "iu: sections: 10 findings, 10 impression; 10 pairs with redacted words" in capsys.readouterr().out
    one = next(pair for pairs in found.values() for pair in pairs if pair.patient_id == "CXR2")
    assert one.source == "png/CXR2_2_IM-1-1.png (impression)" and one.report == "Impression 2."
    again, _, _ = run(source)
    assert [pair.patient_id for pair in again["test"]] == [pair.patient_id for pair in found["test"]]


def test_kaggles_files(tmp_path):
    views = [(n, f"{n}_IM-1-{v}.dcm.png", "Frontal" if v else "Lateral") for n in range(1, 5) for v in (0, 1)]
    kaggle(tmp_path, [(n, f"Findings {n}.", "") for n in range(1, 5)], views)
    for number in range(1, 5):
        for view in (0, 1):
            picture(tmp_path / f"images/{number}_IM-1-{view}.dcm.png", 20 * view + number)
    source = replace(BASE, root=str(tmp_path), layout="kaggle", reports="indiana_reports.csv",
                     views_table="indiana_projections.csv", views="frontal", section="findings")  # fmt: skip
    found, stats, _ = run(source)
    assert [pair.source for pair in found["train"]] == [f"images/{n}_IM-1-1.dcm.png (findings)" for n in range(1, 5)]
    assert stats.accepted == {"train": 4}


def test_mimics_variant_keeps_studies_and_patients_apart_from_pictures(tmp_path):
    folder, items = "p10/p10000032/s50414267", []
    for number in (1, 2):
        picture(tmp_path / f"images/{folder}/02aa-{number}.jpg", 50 * number)
        items.append(
            item(f"02aa-{number}", "Clear.", [f"{folder}/02aa-{number}.jpg"], subject_id=10000032, study_id=50414267)
        )
    annotation(tmp_path / "annotation.json", train=items)
    found, _, _ = run(replace(BASE, root=str(tmp_path)))
    assert {(pair.patient_id, pair.study_id) for pair in found["train"]} == {("p10000032", "s50414267")}
    assert len(found["train"]) == 2


def test_nothing_usable_is_an_error(tmp_path):
    annotation(tmp_path / "annotation.json", train=[iu_item(1, "Clear.", "train")])
    with pytest.raises(ValueError, match=r"holds no usable pair.*file is missing"):
        run(replace(BASE, root=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"datasets\.iu\.root"):
        run(replace(BASE, root=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": "both"}, "views must be one of single, all, frontal, got 'both'"),
        ({"layout": "zip"}, "layout must be one of"),
        ({"section": "findings"}, "section is given for the layout annotation"),
        ({"layout": "kaggle", "section": "both"}, "kaggle needs views_table"),
        ({"prompt": "chest: frontal"}, "may not hold ':'"),
        ({"val": 0.6, "test": 0.4}, "their sum below 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(BASE, **changes)


@pytest.mark.skipif(not REAL.is_dir(), reason="real sample data is not here")
def test_real_iu_xray_counts_and_pictures(tmp_path):
    source = replace(BASE, root=str(REAL), reports="iu_xray/annotation.json", image_folder="iu_xray")
    studies = read_studies("iu", source).studies
    copied, total = copied_reports(studies)["test"]
    assert total > 200 and 0.3 < copied / total < 0.6
    annotation(tmp_path / "annotation.json",
               train=[item("7", "Clear.", ["CXR7_IM-2263-1001.png", "CXR7_IM-2263-2001.png"])])  # fmt: skip
    (tmp_path / "images").symlink_to((REAL / "iu_openi_png").resolve())
    found, _, _ = run(replace(BASE, root=str(tmp_path), views="all"))
    pixels = [decode_png(pair.image) for pair in found["train"]]
    assert len(pixels) == 2 and all(np.ptp(one) > 100 for one in pixels)


@pytest.mark.skipif(not REAL.is_dir(), reason="real sample data is not here")
def test_real_iu_xray_words_and_missing_pictures(tmp_path):
    """The annotation with one of its pictures: all others are named and quarantined, nothing disappears in silence."""
    source = replace(BASE, root=str(tmp_path), reports="annotation.json", image_folder="", views="all")
    (tmp_path / "annotation.json").symlink_to((REAL / "iu_xray/annotation.json").resolve())
    studies = read_studies("iu", source).studies
    with pytest.raises(ValueError, match=r"no usable pair .*file is missing"):
        run(source)
    shown = tmp_path / studies[0].images[0]
    shown.parent.mkdir()
    shown.symlink_to((REAL / "iu_openi_png/CXR7_IM-2263-1001.png").resolve())
    found, stats, _ = run(source)
    assert [pair.source for pairs in found.values() for pair in pairs] == [studies[0].images[0]]
    reasons = Counter(reason for _, reason in stats.quarantined)
    named = sum(len(study.images) for study in studies)
    assert reasons == {"file is missing": named - 1} and named > len(studies) == 1476
    train = [study.report for study in studies if study.split == "train"]
    words = {threshold: published_words(train, threshold).words for threshold in (1, 3, 10)}
    assert {threshold: len(kept) for threshold, kept in words.items()} == {1: 1158, 3: 574, 10: 287}
    assert set(words[10]) < set(words[3]) < set(words[1])
