import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.data.marks import HEIGHTS, KINDS, SHADES, SIDES, SIZES, MarkGrammar, Marks
from medim.data.report_grammar import split_sentences

DOMAIN, WORDS = Marks(), MarkGrammar()
PLAIN = {"tint": "grey", "light": "medium", "texture": "plain", "seed": 3}


def scenes(count=400):
    return [DOMAIN.studies(0, patient)[0] for patient in range(count)]


def one(kind, size=256, **changes):
    """(with the mark, without it): noise-free grey levels."""
    mark = {
        "kind": kind, "shade": "bright", "size": "large", "height": "mid", "side": "left", "faint": False, "x": 0.25,
        "y": 0.5, "r": 0.15, "angle": 0.0, "contrast": 60.0, **changes,
    }  # fmt: skip
    drawn, blank = (DOMAIN.render({"ground": PLAIN, "marks": marks}, size, noise=False).image for marks in ([mark], []))
    return drawn[..., 0].astype(float), blank[..., 0].astype(float)


@given(seed=st.integers(0, 2**31), patient=st.integers(0, 30_000_000))
@settings(max_examples=40, deadline=None)
def test_scenes_survive_json_and_captions_are_true(seed, patient):
    (scene,) = DOMAIN.studies(seed, patient)
    again = json.loads(json.dumps(scene))
    assert DOMAIN.report(again) == DOMAIN.report(scene)
    assert np.array_equal(DOMAIN.render(again, 40).image, DOMAIN.render(scene, 40).image)
    kinds = [mark["kind"] for mark in scene["marks"]]
    assert len(set(kinds)) == len(kinds) <= 4
    for mark in scene["marks"]:
        assert SIDES[mark["side"]][0] <= mark["x"] <= SIDES[mark["side"]][1]
        assert HEIGHTS[mark["height"]][0] <= mark["y"] <= HEIGHTS[mark["height"]][1]
        assert SIZES[mark["size"]][0] - 1e-4 <= mark["r"] <= SIZES[mark["size"]][1] + 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shade", SHADES)
def test_a_mark_changes_its_place_and_nothing_else(kind, shade):
    drawn, blank = one(kind, shade=shade)
    change = (drawn - blank) * SHADES[shade]
    assert change.min() >= -1 and 40 < change.max() <= 61
    assert not change[:, 180:].any()  # a mark on the left leaves the right as it is
    centre = change.sum(0) @ np.arange(256) / change.sum() / 256
    assert centre == pytest.approx(0.25, abs=0.08)


def test_areas_of_the_marks():
    """Closed forms, in units of r²."""
    for kind, area in (("spot", np.pi * 0.6**2), ("box", 2 * 0.7 * 2 * 0.7 / 1.3), ("wedge", 2.0)):
        drawn, blank = one(kind)
        assert (drawn - blank).sum() / 60 / 256**2 == pytest.approx(area * 0.15**2, rel=0.05)


def test_a_faint_mark_is_fainter_than_a_sure_one_and_is_spoken_of_as_uncertain():
    contrasts = {faint: [] for faint in (True, False)}
    for scene in scenes():
        said = split_sentences(DOMAIN.report(scene))
        for mark in scene["marks"]:
            contrasts[mark["faint"]].append(mark["contrast"])
            name = f"{mark['shade']} {mark['kind']}"
            sentence = next(s.lower() for s in said if name in s.lower())
            assert sentence.startswith("possible") == mark["faint"]
    assert max(contrasts[True]) < min(contrasts[False])


@pytest.mark.parametrize("light", ["dark", "medium", "light"])
def test_nothing_is_cut_off_at_black_or_white(light):
    some = [scene for scene in scenes(1500) if scene["ground"]["light"] == light][:150]
    values = np.stack(
        [DOMAIN.render({**scene, "ground": {**scene["ground"], "tint": "grey"}}, 48).image for scene in some]
    )
    assert (values == 0).mean() < 1e-3 and (values == 255).mean() < 1e-3


def test_captions_say_of_every_kind_in_order_where_it_is_or_that_it_is_not():
    for scene in scenes(200):
        sentences = split_sentences(DOMAIN.report(scene))
        assert all(WORDS.is_valid(sentence) for sentence in sentences)
        marks = {mark["kind"]: mark for mark in scene["marks"]}
        for kind, sentence in zip(KINDS, sentences, strict=True):
            if kind in marks:
                mark = marks[kind]
                name = f"{mark['size']} {mark['shade']} {kind} in the {mark['height']} {mark['side']}."
                assert sentence.lower().endswith(name)
            else:
                assert sentence == f"No {kind}."
    assert not WORDS.is_valid("no spot.") and not WORDS.is_valid("No heart.")
    assert not WORDS.is_valid("Small bright spot in the upper left")
    assert WORDS.read("No spot.") == {}


def test_kinds_and_places_are_even():
    seen = Counter(mark["kind"] for scene in scenes(2000) for mark in scene["marks"])
    sides = Counter(mark["side"] for scene in scenes(2000) for mark in scene["marks"])
    for counts, names in ((seen, KINDS), (sides, SIDES)):
        mean = sum(counts.values()) / len(names)
        assert all(0.8 * mean < counts[name] < 1.2 * mean for name in names)


@pytest.mark.parametrize("size", [31, 513])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match=f"32 to 512 pixels, got {size}"):
        DOMAIN.render(scenes(1)[0], size)


def test_noise_is_the_scene_s_own():
    scene = scenes(1)[0]
    noisy, clean = (DOMAIN.render(scene, 64, noise=noise).image.astype(float) for noise in (True, False))
    assert 1 < np.abs(noisy - clean).mean() < 5
