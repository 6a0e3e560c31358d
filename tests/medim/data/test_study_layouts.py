import gzip
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from study_files import annotation, item, iu_item, kaggle, openi_xml

from medim.data.study_layouts import (
    patient_of,
    picture_key,
    read_annotation,
    read_kaggle,
    read_openi,
    read_views,
    report_of,
)

REAL = Path(__file__).parents[3] / "../shared/realdata"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="real sample data is not here")


def test_r2gens_file_of_iu_xray(tmp_path):
    path = annotation(tmp_path / "annotation.json", train=[iu_item(1, "Clear.", "train")],
                      val=[iu_item(2, "Small\neffusion.", "val")], test=[iu_item(3, "Clear.", "test")])  # fmt: skip
    read = read_annotation(path, {})
    assert [(one.name, one.study_id, one.patient, one.split) for one in read.studies] == [
        ("CXR1_IM-0001", "CXR1_IM-0001", "CXR1", "train"),
        ("CXR2_IM-0002", "CXR2_IM-0002", "CXR2", "val"),
        ("CXR3_IM-0003", "CXR3_IM-0003", "CXR3", "test"),
    ]
    assert read.studies[1].report == "Small effusion." and read.studies[1].section == "given"
    assert read.studies[0].images == ("CXR1_IM-0001/0.png", "CXR1_IM-0001/1.png")
    assert read.studies[0].views == ("", "") and not read.quarantine


def test_the_file_of_mimic_cxr(tmp_path):
    folder = "p10/p10000032/s50414267"
    items = [
        item(
            f"02aa804e-{n}",
            "Clear.",
            [f"{folder}/02aa804e-{n}.jpg"],
            subject_id=10000032,
            study_id=50414267,
            split="train",
        )
        for n in (1, 2)
    ]
    bare = item("12345678-a", "Clear.", f"{folder}/12345678-a.jpg")  # a fork without ids and with one name for the list
    read = read_annotation(
        annotation(tmp_path / "a.json", train=[*items, bare], validate=[]), {"02aa804e-1": "frontal"}
    )
    assert {(one.patient, one.study_id) for one in read.studies} == {("p10000032", "s50414267")}
    assert [one.views for one in read.studies] == [("frontal",), ("",), ("",)]
    assert read.studies[2].images == (f"{folder}/12345678-a.jpg",)


def test_flat_names_one_to_five_pictures_and_views_of_the_item(tmp_path):
    names = [f"CXR1015_IM-{series}-{n}001.png" for series in ("0001", "0013") for n in (1, 2)]
    items = [
        item("1015", "Clear.", names, view=["PA", "LATERAL", "AP", "LL"]),
        item("7", "Clear.", ["CXR7_IM-2263-1001.png"]),
        item("8", "Clear.", ["CXR8_IM-2264-0001-0001.png"]),
    ]
    read = read_annotation(annotation(tmp_path / "a.json", Train=items), {"7_im-2263-1001": "frontal"})
    assert [one.patient for one in read.studies] == ["CXR1015", "CXR7", "CXR8"]
    assert read.studies[0].views == ("frontal", "lateral", "frontal", "lateral")
    assert read.studies[1].views == ("frontal",) and read.studies[2].views == ("",)


@pytest.mark.parametrize("key", ["", " ", "test", "Test "])
def test_a_blank_key_is_the_test_split(tmp_path, key):
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"train": [iu_item(1, "Clear.", "train")], key: [item("CXR2_IM-2", "Clear.", ["a.png"])]})
    )
    assert [one.split for one in read_annotation(path, {}).studies] == ["train", "test"]


def test_items_that_cannot_be_used_are_named(tmp_path):
    items = [
        iu_item(1, "Clear.", "train"), iu_item(1, "Clear.", "train"), iu_item(2, "Clear.", "test"),
        item("CXR3_IM-1", "Clear.", []), item("study", "Clear.", ["x.png"]),
        item("CXR4_IM-1", "Clear.", ["CXR5_IM-1-1.png"]), {"id": "CXR6_IM-1"}, "text",
    ]  # fmt: skip
    read = read_annotation(annotation(tmp_path / "a.json", train=items), {})
    assert [one.name for one in read.studies] == ["CXR1_IM-0001"]
    assert read.quarantine == [
        ("CXR1_IM-0001", "the id stands twice"),
        ("train item 3", "stands under train and says 'test'"),
        ("train item 4", "CXR3_IM-1: names no picture"),
        ("train item 5", "study: no patient in the id, the subject_id or the picture's path"),
        ("train item 6", "CXR4_IM-1: has pictures of another patient (CXR5)"),
        ("train item 7", "no object with id, report and image_path"),
        ("train item 8", "no object with id, report and image_path"),
    ]


def test_a_file_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prepare_data\.datasets\.<name>\.reports"):
        read_annotation(tmp_path / "none.json", {})
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="got list"):
        read_annotation(tmp_path / "list.json", {})
    (tmp_path / "bad.json").write_text('{"train": [\n}')
    with pytest.raises(ValueError, match=r"bad\.json line 2"):
        read_annotation(tmp_path / "bad.json", {})
    with pytest.raises(ValueError, match="has the split 'holdout'"):
        read_annotation(annotation(tmp_path / "split.json", holdout=[]), {})


@pytest.mark.parametrize(
    ("name", "images", "subject", "patient"),
    [
        ("CXR2384_IM-0942", ["CXR2384_IM-0942/0.png"], None, "CXR2384"),
        ("CXR1_1_IM-0001-3001", ["a.png"], None, "CXR1"),
        ("3321", ["CXR3321_IM-1588-1001.png"], None, "CXR3321"),
        ("x", ["images/1_IM-0001-4001.dcm.png"], None, "CXR1"),
        ("x", ["files/p10/p10000032/s50414267/02aa.jpg"], None, "p10000032"),
        ("x", ["a.jpg"], 10000032, "p10000032"),
        ("x", ["a.jpg"], "p10000032", "p10000032"),
        ("02aa804e-bde0", ["a.jpg"], "", ""),
    ],
)
def test_the_patient(name, images, subject, patient):
    assert patient_of(name, images, subject) == patient


def test_three_naming_schemes_of_one_picture_share_a_key():
    names = ("CXR1_1_IM-0001-3001", "1_IM-0001-3001.dcm.png", "images/CXR1_IM-0001-3001.PNG")
    assert {picture_key(name) for name in names} == {"1_im-0001-3001"}
    assert picture_key("p10/x/02AA-1.jpg") == "02aa-1"


def test_views_of_both_tables(tmp_path):
    (tmp_path / "p.csv").write_text(
        "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-2.dcm.png,Lateral\n"
    )
    assert read_views(tmp_path / "p.csv") == {"1_im-0001-4001": "frontal", "1_im-2": "lateral"}
    meta = "dicom_id,subject_id,study_id,ViewPosition,Rows\n02aa-1,1,2,PA,9\n02aa-2,1,2,LL,9\n02aa-3,1,2,,9\n"
    (tmp_path / "m.csv.gz").write_bytes(gzip.compress(meta.encode()))
    assert read_views(tmp_path / "m.csv.gz") == {"02aa-1": "frontal", "02aa-2": "lateral", "02aa-3": ""}
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="filename and projection, or dicom_id and ViewPosition"):
        read_views(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError, match="views_table"):
        read_views(tmp_path / "none.csv")


def test_openi_reports_do_not_take_a_section_from_the_file_before(tmp_path):
    folder = tmp_path / "ecgen-radiology"
    openi_xml(
        folder / "1.xml", "CXR1", {"FINDINGS": "Small effusion.", "IMPRESSION": "Effusion."}, ["CXR1_1_IM-0001-3001"]
    )
    openi_xml(
        folder / "2.xml", "CXR2", {"FINDINGS": None, "IMPRESSION": "Clear  lungs."}, ["CXR2_IM-2-1", "CXR2_IM-2-2"]
    )
    openi_xml(folder / "10.xml", "CXR10", {"COMPARISON": "None.", "FINDINGS": "", "IMPRESSION": ""}, ["CXR10_IM-3-1"])
    openi_xml(folder / "11.xml", "CXR11", {"FINDINGS": "XXXX lungs."})
    openi_xml(folder / "12.xml", "", {"FINDINGS": "Clear."}, ["a"])
    (folder / "13.xml").write_text("<eCitation>")
    read = read_openi(folder, {"2_im-2-1": "frontal"}, "findings_or_impression")
    assert [(one.study_id, one.report, one.section) for one in read.studies] == [
        ("CXR1", "Small effusion.", "findings"),
        ("CXR2", "Clear lungs.", "impression"),
    ]
    assert read.studies[1].images == ("CXR2_IM-2-1.png", "CXR2_IM-2-2.png")
    assert read.studies[1].views == ("frontal", "")
    assert [(name, why.partition(" (")[0]) for name, why in read.quarantine] == [
        ("CXR10", "no findings or impression"),
        ("CXR11", "names no picture"),
        ("12.xml", "the report's uId is '', expected CXR and a number"),
        ("13.xml", "not XML"),
    ]
    with tarfile.open(tmp_path / "r.tgz", "w:gz") as archive:
        archive.add(folder, "ecgen-radiology")
    packed = read_openi(tmp_path / "r.tgz", {"2_im-2-1": "frontal"}, "findings_or_impression")
    assert packed.studies == read.studies and len(packed.quarantine) == 4


def test_openi_sources_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="reports"):
        read_openi(tmp_path / "none", {}, "findings")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.xml"):
        read_openi(tmp_path / "empty", {}, "findings")
    (tmp_path / "x.tgz").write_text("no archive")
    with pytest.raises(ValueError, match="neither a folder nor a tar archive"):
        read_openi(tmp_path / "x.tgz", {}, "findings")


def test_kaggles_tables(tmp_path):
    kaggle(
        tmp_path,
        [
            (1, "Clear.", "Normal."),
            (2, "", "Effusion, small."),
            (3, "", ""),
            (4, "Clear.", ""),
            (1, "x", "x"),
            ("", "x", "x"),
        ],
        [(1, "1_IM-1.dcm.png", "Frontal"), (1, "1_IM-2.dcm.png", "Lateral"), (2, "2_IM-1.dcm.png", "Frontal")],
    )
    read = read_kaggle(tmp_path / "indiana_reports.csv", tmp_path / "indiana_projections.csv", "both")
    assert [(one.patient, one.report, one.section, one.views) for one in read.studies] == [
        ("CXR1", "Clear. Normal.", "findings+impression", ("frontal", "lateral")),
        ("CXR2", "Effusion, small.", "impression", ("frontal",)),
    ]
    assert read.quarantine == [
        ("CXR3", "no findings or impression"), ("CXR4", "names no picture"), ("CXR1", "the id stands twice"),
        ("indiana_reports.csv row 6", "no uid, got ''"),
    ]  # fmt: skip
    (tmp_path / "other.csv").write_text("uid,findings\n1,x\n")
    with pytest.raises(KeyError, match="no column 'impression'"):
        read_kaggle(tmp_path / "other.csv", tmp_path / "indiana_projections.csv", "both")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("findings", ("A.", "findings")),
        ("impression", ("B.", "impression")),
        ("findings_or_impression", ("A.", "findings")),
        ("both", ("A. B.", "findings+impression")),
    ],
)
def test_the_policy_of_sections(section, expected):
    assert report_of({"findings": "A.", "impression": "B."}, section) == expected


def test_sections_that_say_nothing():
    assert report_of({"findings": "N/A", "impression": "B."}, "findings_or_impression") == ("B.", "impression")
    assert report_of({"findings": "", "impression": None}, "both") == ("", "")
    with pytest.raises(ValueError, match="got 'all'"):
        report_of({}, "all")


@needs_data
def test_real_iu_xray_files():
    read = read_annotation(REAL / "iu_xray/annotation.json", {})
    assert len(read.studies) == 1476 and not read.quarantine
    assert {len(one.images) for one in read.studies} == {2}
    assert all(one.patient.startswith("CXR") for one in read.studies)
    views = read_views(REAL / "iu_kaggle/indiana_projections.csv")
    flat = read_annotation(REAL / "iu_variants/annotation_mrgrl_flat_png.json", views)
    assert len(flat.studies) + len(flat.quarantine) == 1910
    assert {len(one.images) for one in flat.studies} <= {1, 2, 3, 4, 5}
    known = Counter(view for one in flat.studies for view in one.views)
    assert known["frontal"] > 1000 and known["lateral"] > 1000


@needs_data
def test_real_openi_reports():
    read = read_openi(REAL / "iu_NLMCXR_reports.tgz", {}, "findings_or_impression")
    reasons = Counter(why for _, why in read.quarantine)
    assert len(read.studies) + len(read.quarantine) == 1979
    assert set(reasons) == {"no findings or impression", "names no picture"}
    assert {section: count > 100 for section, count in Counter(one.section for one in read.studies).items()} == {
        "findings": True, "impression": True,
    }  # fmt: skip
    files = (REAL / "iu_kaggle/indiana_reports.csv", REAL / "iu_kaggle/indiana_projections.csv")
    table = read_kaggle(*files, "findings_or_impression")
    same = {one.patient: one.report for one in read.studies}
    shared = [one for one in table.studies if one.patient in same]
    assert len(shared) > 1000 and sum(one.report == same[one.patient] for one in shared) / len(shared) > 0.95
