import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.data import get_domain
from medim.data.drawings import COLOURS, HOLLOW, SHAPES, SIZES, DrawingGrammar, Drawings
from medim.data.report_grammar import split_sentences
from medim.pairs import decode_png

DOMAIN = Drawings()
WHITE = {"style": "plain", "colour": "white"}
AREA = {  # in units of r², closed forms
    "circle": np.pi,
    "square": (2 / 1.2) ** 2,
    "diamond": 2 / 1.25,
    "triangle": 3 * np.sqrt(3) / 4,
    "cross": 2 * 2 * 0.6 - 0.6**2,
    "ring": np.pi * (1 - 0.6**2),
    "star": 10 * 0.5 * 0.42 * np.sin(np.pi / 5),
}


def some_scenes(count=300):
    return [DOMAIN.studies(0, patient)[0] for patient in range(count)]


def draw_one(shape, r=0.3, size=512):
    looks = {"shape": shape, "colour": "black", "size": "large", "x": 0.5, "y": 0.5, "r": r}
    return DOMAIN.render({"background": WHITE, "shapes": [looks]}, size).image


@pytest.mark.parametrize("shape", SHAPES)
def test_areas_of_the_shapes(shape):
    ink = (250 - draw_one(shape)[..., 0].astype(float)) / (250 - COLOURS["black"][0])
    assert ink.sum() / 512**2 == pytest.approx(AREA[shape] * 0.3**2, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_symmetric_and_not_cut_off(shape):
    image = draw_one(shape, size=64)
    assert np.abs(image.astype(int) - image[:, ::-1]).max() <= 2
    for border in (image[:10], image[-10:], image[:, :10], image[:, -10:]):
        assert (border == 250).all()


@given(seed=st.integers(0, 2**31), patient=st.integers(0, 30_000_000))
@settings(max_examples=40, deadline=None)
def test_scenes_survive_json_and_captions_are_true(seed, patient):
    (scene,) = DOMAIN.studies(seed, patient)
    again = json.loads(json.dumps(scene))
    assert DOMAIN.report(again) == DOMAIN.report(scene)
    assert np.array_equal(DOMAIN.render(again, 40).image, DOMAIN.render(scene, 40).image)
    shapes = scene["shapes"]
    assert 2 <= len(shapes) <= 4
    assert len({(shape["colour"], shape["shape"]) for shape in shapes}) == len(shapes)
    assert {k for subject, _, other in scene["relations"] for k in (subject, other)} == set(range(len(shapes)))
    for subject, relation, other in scene["relations"]:
        a, b = shapes[subject], shapes[other]
        holds = {
            "left": a["x"] < b["x"],
            "right": a["x"] > b["x"],
            "above": a["y"] < b["y"],
            "below": a["y"] > b["y"],
            "inside": np.hypot(a["x"] - b["x"], a["y"] - b["y"]) + a["r"] < 0.6 * b["r"] + 1e-9,
        }
        assert holds[relation]
        if relation == "inside":
            assert b["shape"] in HOLLOW and a["colour"] != b["colour"]
    for shape in shapes:
        low, high = SIZES[shape["size"]]
        assert low <= shape["r"] <= high
        assert shape["r"] < min(shape["x"], shape["y"], 1 - shape["x"], 1 - shape["y"])


def test_shapes_do_not_overlap_unless_nested():
    for scene in some_scenes():
        nested = {frozenset((a, b)) for a, relation, b in scene["relations"] if relation == "inside"}
        for i, a in enumerate(scene["shapes"]):
            for j, b in enumerate(scene["shapes"][:i]):
                apart = max(abs(a["x"] - b["x"]), abs(a["y"] - b["y"])) - a["r"] - b["r"]
                assert apart >= 0 or frozenset((i, j)) in nested


def test_captions_are_valid_prose_of_10_to_35_words():
    reports = [DOMAIN.report(scene) for scene in some_scenes()]
    lengths = [len(report.split()) for report in reports]
    assert min(lengths) >= 10 and max(lengths) <= 35
    assert len(set(reports)) >= 0.99 * len(reports)
    for report in reports:
        assert ":" not in report
        assert all(DOMAIN.grammar.is_valid(sentence) for sentence in split_sentences(report)), report


@pytest.mark.parametrize(
    "sentence",
    [
        "A large red circle.",
        "a large red circle is left of a small blue star.",
        "An large red circle is left of a small blue star.",
        "A large red circle is inside of a small blue star.",
        "A huge red circle is left of a small blue star.",
        "The background is plain red.",
        "The background is plain white. The background is plain white.",
        "",
    ],
)
def test_sentences_that_the_grammar_cannot_produce(sentence):
    assert not DrawingGrammar().is_valid(sentence)
    assert DrawingGrammar().is_valid("A large red circle is left of a small blue star.")


def test_drawings_have_no_findings():
    assert get_domain("drawings").findings == ()
    assert DOMAIN.grammar.read("There is a large pleural effusion.") == {}
    (pair,) = DOMAIN.pairs(0, 3, 64)
    assert pair.pair_id == "drawings-0000003-0" and pair.patient_id == "drawings-0000003"
    assert pair.states == {} and pair.masks is None and pair.prompt == "drawing"
    assert decode_png(pair.image).shape == (64, 64, 3)
    assert DOMAIN.truth(json.loads(pair.scene)) == {}


@pytest.mark.parametrize("size", [16, 1024])
def test_sizes_out_of_range(size):
    with pytest.raises(ValueError, match=str(size)):
        DOMAIN.render(some_scenes(1)[0], size)


def test_drawing_does_not_change_the_cached_background():
    scene = some_scenes(1)[0]
    first = DOMAIN.render(scene, 64).image
    empty = DOMAIN.render({**scene, "shapes": []}, 64).image
    assert not np.array_equal(first, empty)
    assert np.array_equal(first, DOMAIN.render(scene, 64, noise=False).image)


def test_a_pair_takes_at_most_two_milliseconds():
    list(DOMAIN.pairs(0, 0, 64))
    rounds = []
    for start in range(0, 300, 100):
        begin = time.process_time()
        rounds += [sum(1 for patient in range(start, start + 100) for _ in DOMAIN.pairs(1, patient, 64))]
        rounds[-1] = (time.process_time() - begin) / rounds[-1]
    assert min(rounds) <= 2e-3
