import numpy as np
import pytest

from medim.baselines import METHODS, get_method
from medim.baselines.base import TrainInputs
from medim.baselines.trivial import CONSTANT, NEAREST, RANDOM, PictureIndex, ReportIndex, load_system
from medim.pairs import Pair, decode_png, encode_png, write_pairs
from medim.system_loading import load_system as load_any
from medim.systems import JOINT_DATASET

WORDS = ["heart", "lung", "nodule", "edema", "left", "right", "clear", "normal"]


def pair(number: int, dataset: str = "d") -> Pair:
    rng = np.random.default_rng(number)
    pixels = np.full((8, 8, 3), 30 * number % 255, np.uint8)
    pixels[: number % 8] = 255
    report = " ".join(rng.choice(WORDS, 6)) + f" case{number}."
    return Pair(f"{dataset}-{number}", f"s{number}", f"p{number}", dataset, "", encode_png(pixels), "x-ray", report)


@pytest.fixture
def system(tmp_path):
    pairs = [pair(n) for n in range(12)]
    write_pairs(tmp_path / "d.parquet", pairs)
    inputs = TrainInputs(
        {"d": {"train": tmp_path / "d.parquet"}}, ("d",), {"fallback": {"other": "d"}}, 0, tmp_path / "work",
        tmp_path / "out", lambda *_: None,
    )  # fmt: skip
    get_method("trivial").train(inputs)
    return load_system(tmp_path / "out"), pairs, tmp_path / "out"


def answers(found, row):
    return [sample for sample in found if sample.row == row]


def test_a_training_pair_finds_itself(system):
    rules, pairs, _ = system
    seeds = range(len(pairs))
    reports = answers(rules.generate("image_to_report", "d", pairs, seeds), NEAREST)
    assert [sample.report for sample in reports] == [p.report for p in pairs]
    pictures = answers(rules.generate("report_to_image", "d", pairs, seeds), NEAREST)
    assert all(np.array_equal(s.image, decode_png(p.image)) for s, p in zip(pictures, pairs, strict=True))
    assert all(sample.image is None for sample in reports) and all(sample.report is None for sample in pictures)


def test_the_constant_is_one_and_the_random_ones_follow_their_seeds(system):
    rules, pairs, _ = system
    found = rules.generate("image_to_report", "d", pairs, range(12))
    assert len({sample.report for sample in answers(found, CONSTANT)}) == 1
    drawn = [sample.report for sample in answers(found, RANDOM)]
    assert len(set(drawn)) > 3 and set(drawn) <= {p.report for p in pairs}
    again = answers(rules.generate("image_to_report", "d", pairs[6:], range(6, 12)), RANDOM)
    assert [sample.report for sample in again] == drawn[6:]


def test_a_dataset_without_training_pairs_is_answered_by_its_stand_in(system):
    rules, pairs, _ = system
    found = rules.generate("image_to_report", "other", pairs[:2], [0, 1])
    assert [s.report for s in answers(found, NEAREST)] == [p.report for p in pairs[:2]]
    assert {s.dataset for s in found} == {"other"}


def test_joint_samples_are_whole_training_pairs(system):
    rules, pairs, _ = system
    found = rules.generate("joint", JOINT_DATASET, pairs, range(12))
    assert {s.row for s in found} == {CONSTANT, RANDOM} and len(found) == 24
    known = {(p.report, p.image) for p in pairs}
    assert all((s.report, encode_png(s.image)) in known for s in found)


def test_the_folder_says_which_module_loads_it(system):
    _, pairs, out = system
    assert load_any(out).generate("joint", JOINT_DATASET, pairs[:1], [0])
    (out / "config.json").write_text("{}")
    with pytest.raises(KeyError, match="no key 'system'"):
        load_any(out)
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        load_any(out / "nowhere")


def test_picture_neighbours_equal_the_exact_ones_where_64_components_hold_everything():
    rng = np.random.default_rng(0)
    train, query = (rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8) for n in (40, 30))
    flat = [x.reshape(len(x), -1).astype(float) for x in (query, train)]
    # 40 centred pictures span at most 39 directions of 48: project the query on them for the reference
    centred = flat[1] - flat[1].mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    a, b = (flat[0] - flat[1].mean(0)) @ axes.T, centred @ axes.T
    assert np.array_equal(PictureIndex(train).nearest(query), ((a[:, None] - b[None]) ** 2).sum(-1).argmin(1))


def test_report_similarity_weighs_rare_words():
    index = ReportIndex(["the heart is normal", "the lung is normal", "the lung has a nodule"])
    assert index.nearest(["a nodule", "normal heart", "of the lung"]).tolist()[:2] == [2, 0]
    assert ReportIndex(["a b", "a b", "c d"]).central() in (0, 1)


def test_unknown_methods_are_named():
    with pytest.raises(KeyError, match="'r2gn'"):
        get_method("r2gn")
    assert all(get_method(key).key == key for key in METHODS)
