import json
import time

import numpy as np
import phantom_gates
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.data import get_domain
from medim.data.domain import STATES
from medim.data.pathology_draw import HEMATOXYLIN, ORGANS, Assets, draw_tissue, get_assets, stamp
from medim.data.pathology_words import GRAMMAR, PHRASES
from medim.data.phantom_pathology import LABELS, NAMED, STRENGTH, TYPICAL, PhantomPathology
from medim.data.report_grammar import MIN_PHRASINGS, split_sentences
from medim.pairs import decode_masks, decode_png, encode_png

DOMAIN = PhantomPathology()


def some_scenes(patients=range(40)):
    return [scene for patient in patients for scene in DOMAIN.studies(0, patient)]


def a_normal_scene():
    return next(scene for scene in some_scenes() if not scene["findings"])


def test_gates():
    phantom_gates.assert_gates(get_domain("phantom_pathology"))
    lengths = phantom_gates.report_lengths(get_domain("phantom_pathology"))
    assert lengths.min() >= 12 and lengths.max() <= 45


def test_domain_offers_ten_findings_none_sided():
    assert len(DOMAIN.findings) == 10
    assert tuple(label for finding in DOMAIN.findings for label in finding.labels) == LABELS
    assert {label for labels in TYPICAL.values() for label in labels} <= set(LABELS)
    assert set(TYPICAL) == set(ORGANS)


@given(seed=st.integers(0, 2**31), patient=st.integers(0, 30_000_000))
@settings(max_examples=20, deadline=None)
def test_scenes_survive_json_and_are_functions_of_seed_and_patient(seed, patient):
    scenes = DOMAIN.studies(seed, patient)
    assert 1 <= len(scenes) <= 3
    assert scenes == DOMAIN.studies(seed, patient)
    for scene in scenes:
        again = json.loads(json.dumps(scene))
        assert again == scene
        assert np.array_equal(DOMAIN.render(again, 32).image, DOMAIN.render(scene, 32).image)
        assert DOMAIN.report(again) == DOMAIN.report(scene)
        assert GRAMMAR.read(DOMAIN.report(scene)) == DOMAIN.truth(scene)


def test_seeds_and_patients_differ():
    scenes = [DOMAIN.studies(seed, patient)[0]["tile"] for seed in range(3) for patient in range(50)]
    assert len(set(scenes)) == len(scenes)


def test_tiles_of_a_patient_share_organ_stain_and_texture_only():
    scenes = next(scenes for patient in range(20) if len(scenes := DOMAIN.studies(0, patient)) > 1)
    for key in ("organ", "stain", "texture"):
        assert scenes[0][key] == scenes[1][key]
    assert scenes[0]["tile"] != scenes[1]["tile"]


@pytest.mark.parametrize("label", LABELS)
def test_one_finding_changes_nothing_outside_its_mask(label):
    for scene in [scene for scene in some_scenes() if len(scene["findings"]) > 1][:6]:
        with_it = DOMAIN.render(DOMAIN.change(scene, label, "present"), 64)
        without = DOMAIN.render(DOMAIN.change(scene, label, "absent"), 64)
        changed = (with_it.image != without.image).any(2)
        assert changed.any()
        assert not (changed & ~with_it.masks[label]).any()
        assert label not in without.masks


@pytest.mark.parametrize("label", LABELS)
def test_uncertain_is_smaller_and_fainter_than_present(label):
    scene = a_normal_scene()
    base = DOMAIN.render(scene, 64, noise=False).image.astype(int)
    area, change = {}, {}
    for state in STATES:
        drawn = DOMAIN.render(DOMAIN.change(scene, label, state), 64, noise=False)
        area[state] = drawn.masks[label].sum() if label in drawn.masks else 0
        change[state] = np.abs(drawn.image.astype(int) - base).sum()
    assert area["absent"] == 0 and change["absent"] == 0
    assert 0 < area["uncertain"] < 0.75 * area["present"]
    assert 0 < change["uncertain"] < 0.45 * change["present"]


def test_strengths_of_the_states_do_not_overlap():
    assert STRENGTH["uncertain"][1] + 0.3 <= STRENGTH["present"][0]
    for scene in some_scenes():
        for finding in scene["findings"].values():
            low, high = STRENGTH[finding["state"]]
            assert low <= finding["strength"] <= high


def test_masks_are_those_of_the_findings_and_travel_with_the_pair():
    for patient in range(10):
        for pair in DOMAIN.pairs(0, patient, 64):
            scene = json.loads(pair.scene)
            drawn = DOMAIN.render(scene, 64)
            masks = decode_masks(pair.masks)
            assert set(masks) == set(drawn.masks) == set(pair.states) == set(DOMAIN.truth(scene))
            assert all(np.array_equal(masks[label], drawn.masks[label]) for label in masks)
            assert np.array_equal(decode_png(pair.image), drawn.image)


def test_prompt_names_the_organ_and_at_times_a_present_finding():
    scenes = [scene for scene in some_scenes(range(400)) if "present" in DOMAIN.truth(scene).values()]
    named = 0
    for scene in scenes:
        head, comma, condition = DOMAIN.prompt(scene).partition(", ")
        assert head == f"histology of the {scene['organ']}"
        named += bool(comma)
        assert not comma or DOMAIN.truth(scene)[condition] == "present"
    assert abs(named / len(scenes) - NAMED) < 0.08
    assert DOMAIN.prompt({**a_normal_scene(), "named": 0.0}).startswith("histology of the ")
    assert "," not in DOMAIN.prompt({**a_normal_scene(), "named": 0.0})


def test_reports_name_the_organ_and_are_valid():
    for scene in some_scenes():
        report = DOMAIN.report(scene)
        assert scene["organ"] in report.split(".")[0]
        assert all(GRAMMAR.is_valid(sentence) for sentence in split_sentences(report)), report
    assert not GRAMMAR.is_valid("In this colon biopsy, necrosis.")


def test_every_sentence_reads_as_what_it_says():
    for sentence, truth in GRAMMAR.every_sentence():
        assert GRAMMAR.read(sentence) == truth, sentence
        assert GRAMMAR.is_valid(sentence), sentence


def test_every_state_has_several_phrasings():
    assert {phrases.finding.name for phrases in PHRASES} == set(LABELS)
    for phrases in PHRASES:
        for state in STATES:
            assert len(set(phrases.templates(state))) >= MIN_PHRASINGS


@pytest.mark.parametrize("size", [48, 64, 100, 160])
def test_a_scene_looks_the_same_at_every_size(size):
    for scene in some_scenes(range(4)):
        image = DOMAIN.render(scene, size, noise=False).image.astype(float)
        small = DOMAIN.render(scene, 32, noise=False).image.astype(float)
        assert image.shape == (size, size, 3)
        # mean colours of the quarters agree, up to the rounding of nuclei to pixels
        quarters = [
            np.stack([half.mean((0, 1)) for row in np.array_split(a, 2) for half in np.array_split(row, 2, 1)])
            for a in (image, small)
        ]
        assert np.abs(quarters[0] - quarters[1]).max() < 14


def test_noise_is_only_sensor_noise():
    scene = some_scenes()[0]
    clean, noisy = (DOMAIN.render(scene, 64, noise).image.astype(float) for noise in (False, True))
    assert np.abs(clean - noisy).max() < 12
    assert 1 < (clean - noisy).std() < 3


def test_stain_follows_beer_lambert():
    """Where there is no tissue the light passes; twice the stain squares the transmission."""
    scene = a_normal_scene()
    light = scene["stain"]["light"]
    once = DOMAIN.render(scene, 64, noise=False).image / light
    stain = scene["stain"]
    twice_stain = {
        **stain,
        "hematoxylin": [2 * d for d in stain["hematoxylin"]],
        "eosin": [2 * d for d in stain["eosin"]],
    }
    twice = DOMAIN.render({**scene, "stain": twice_stain}, 64, noise=False).image / light
    assert np.abs(twice - once**2).max() < 2.5 / light * 2
    assert HEMATOXYLIN[2] < min(HEMATOXYLIN[:2])  # lets blue pass


def test_stamp_equals_a_plain_reference_also_at_the_border():
    rng = np.random.default_rng(0)
    assets: Assets = get_assets(64)
    sprites = assets.sprites["cell"]
    at, kinds = rng.integers(-9, 73, (60, 2)), rng.integers(0, len(sprites), 60)
    dark = rng.uniform(0.5, 1.5, 60)
    target = np.zeros((64, 64), np.float32)
    stamp(target, sprites, at, kinds, dark)
    half = sprites.shape[1] // 2
    plain = np.zeros((64 + 80, 64 + 80), np.float32)
    for (col, row), kind, strength in zip(at, kinds, dark, strict=True):
        top, left = row - half + 40, col - half + 40
        for i in range(sprites.shape[1]):
            for j in range(sprites.shape[1]):
                plain[top + i, left + j] = max(plain[top + i, left + j], sprites[kind, i, j] * np.float32(strength))
    assert np.array_equal(target, plain[40:104, 40:104])


def test_organs_differ():
    tissue = {
        organ: draw_tissue(get_assets(64), ORGANS[organ], {"eosin": 1, "density": 1, "angle": 0.3}, 5)
        for organ in ORGANS
    }
    lumen = {organ: float((canvas.e < 0.03).mean()) for organ, canvas in tissue.items()}
    assert lumen["lung"] > 0.15 and lumen["liver"] < 0.02
    assert all((canvas.h >= 0).all() and (canvas.e >= 0).all() for canvas in tissue.values())


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="got 16"):
        DOMAIN.render(a_normal_scene(), 16)
    with pytest.raises(KeyError, match="'cough'"):
        DOMAIN.change(a_normal_scene(), "cough", "present")
    with pytest.raises(KeyError, match="'maybe'"):
        DOMAIN.change(a_normal_scene(), "necrosis", "maybe")


def test_a_pair_costs_little_more_than_its_png():
    """At most eight times the PNG of a noisy picture: a ratio, since other processes slow both down."""
    for organ in ORGANS:
        DOMAIN.report({"organ": organ, "findings": {}, "words": 0})
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    pair, png = [], []
    for start in range(0, 150, 15):
        begin = time.process_time()
        count = sum(1 for patient in range(start, start + 15) for _ in DOMAIN.pairs(1, patient, 64))
        between = time.process_time()
        for _ in range(count):
            encode_png(picture)
        pair.append((between - begin) / count)
        png.append((time.process_time() - between) / count)
    assert min(pair) <= 8 * min(png)
