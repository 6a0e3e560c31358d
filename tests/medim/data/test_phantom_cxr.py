"""Phantom chest X-rays: gates of difficulty, true counterfactuals, sides, sizes."""

import json
from itertools import pairwise

import numpy as np
import phantom_gates as gates
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim.data import get_domain
from medim.data.cxr_scene import STRENGTH
from medim.data.phantom_cxr import DOMAIN, LABELS
from medim.pairs import decode_masks, decode_png

HOME, AWAY = DOMAIN["phantom_cxr"], DOMAIN["phantom_cxr_ood"]
AWAY_PAIRS = gates.draw(AWAY, 200, gates.FIRST_TEST).pairs


def test_gates():
    gates.assert_gates(HOME)


@pytest.mark.slow
def test_gates_of_the_other_site():
    gates.assert_gates(AWAY)


def test_registry_and_labels():
    assert get_domain("phantom_cxr") is HOME
    assert len(HOME.findings) == 10 and len(LABELS) == 16
    assert HOME.findings == AWAY.findings == HOME.grammar.findings


def test_both_states_and_both_sides_occur_equally():
    train, _ = gates.sample_of(HOME)
    assert 0.2 < (train.values == 0.5).sum() / (train.values > 0).sum() < 0.4
    shares = gates.prevalence(HOME, sides=True)
    assert all(0.03 <= share <= 0.30 for share in shares.values())
    assert 0.10 <= (train.values.max(1) == 0).mean() <= 0.35  # normal studies


def test_the_home_reader_reads_reports_of_the_other_site():
    for pair in AWAY_PAIRS:
        assert HOME.grammar.read(pair.report) == pair.states, pair.report


def test_prompts():
    train, _ = gates.sample_of(HOME)
    prompts = [pair.prompt for pair in train.pairs]
    assert all(prompt.startswith("chest x-ray") and ":" not in prompt for prompt in prompts)
    assert 0.33 <= np.mean(["," in prompt for prompt in prompts]) <= 0.47
    for pair in train.pairs:
        _, *rest = pair.prompt.split(", ")
        if len(rest) == 2:
            assert (pair.states or {})[f"{rest[0].split()[0]} {rest[1]}"] == "present"


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(LABELS), st.sampled_from(["uncertain", "present"]), st.booleans())
def test_counterfactual_changes_nothing_outside_the_finding(patient, label, state, home):
    domain = HOME if home else AWAY
    scene = domain.studies(3, patient)[0]
    without, with_it = (domain.render(domain.change(scene, label, s), 64) for s in ("absent", state))
    mask = with_it.masks[label]
    assert label not in without.masks
    assert np.array_equal(without.image[~mask], with_it.image[~mask])
    if not scene["findings"]:
        assert (without.image[mask] != with_it.image[mask]).mean() > 0.3  # it is drawn, not only masked


@pytest.mark.parametrize("label", LABELS)
def test_uncertain_findings_are_fainter_than_present_ones(label):
    ratios, contrasts = [], []
    for patient in range(8):
        scene = {**HOME.studies(4, patient)[0], "findings": {}}
        plain = HOME.render(scene, 64, noise=False).image[..., 0].astype(float)
        faint, clear = (HOME.render(HOME.change(scene, label, s), 64, noise=False) for s in STRENGTH)
        changes = [np.abs(drawn.image[..., 0] - plain)[drawn.masks[label]].sum() for drawn in (faint, clear)]
        ratios.append(changes[0] / changes[1])
        contrasts.append(np.abs(clear.image[..., 0] - plain).max())
    assert 0.3 < np.mean(ratios) < 0.65
    assert np.median(contrasts) > 35  # of 255: visible at 64 pixels


def test_states_do_not_overlap_in_strength():
    assert STRENGTH["uncertain"][1] < STRENGTH["present"][0] - 0.3


@pytest.mark.parametrize("name", ["effusion", "pneumothorax", "consolidation", "nodule", "atelectasis", "rib fracture"])
def test_the_patients_left_is_on_the_pictures_right(name):
    for patient in range(6):
        scene = {**HOME.studies(5, patient)[0], "findings": {}}
        for side, on_right in (("left", True), ("right", False)):
            mask = HOME.render(HOME.change(scene, f"{side} {name}", "present"), 64).masks[f"{side} {name}"]
            assert mask.any() and (np.nonzero(mask)[1].mean() > 32) == on_right


def test_all_findings_stay_inside_the_collimation_border():
    for pair in gates.sample_of(HOME)[0].pairs[:500]:
        for label, mask in decode_masks(pair.masks).items():
            assert mask.sum() >= 4, (pair.pair_id, label)


def test_border_at_home_only():
    def edges(pairs):
        return np.stack([decode_png(pair.image)[0, :, 0] for pair in pairs])

    assert 0.4 < (edges(gates.sample_of(HOME)[1].pairs[:200]).max(1) == 0).mean() < 0.95
    assert (edges(AWAY_PAIRS).max(1) == 0).mean() == 0


def test_patients_keep_their_body_and_findings_come_and_go():
    stories = [HOME.studies(0, patient) for patient in range(300)]
    assert {len(story) for story in stories} == {1, 2, 3}
    kept = new = 0
    for story in stories:
        for before, after in pairwise(story):
            assert before["anatomy"] == after["anatomy"] and before["noise_seed"] != after["noise_seed"]
            assert after["prior"] and not story[0]["prior"]
            kept += len(before["findings"].keys() & after["findings"].keys())
            new += len(after["findings"].keys() - before["findings"].keys())
    assert kept > 50 and new > 50


@pytest.mark.parametrize("size", [32, 64, 128, pytest.param(512, marks=pytest.mark.slow)])
def test_any_size_shows_the_same_scene(size):
    scene = HOME.change(HOME.studies(6, 1)[0], "left effusion", "present")
    drawn = HOME.render(scene, size, noise=False)
    assert drawn.image.shape == (size, size, 3) and drawn.image.dtype == np.uint8
    assert all(mask.shape == (size, size) for mask in drawn.masks.values())
    small = HOME.render(scene, 32, noise=False).image[..., 0].astype(float)
    block = drawn.image[..., 0].reshape(32, size // 32, 32, size // 32).mean((1, 3))
    assert np.corrcoef(block.ravel(), small.ravel())[0, 1] > 0.93


@pytest.mark.parametrize("size", [31, 513])
def test_sizes_outside_the_range_are_refused(size):
    with pytest.raises(ValueError, match=r"outside 32\.\.512; set prepare_data\.image_size"):
        HOME.render(HOME.studies(0, 0)[0], size)


def test_change_refuses_unknown_findings():
    with pytest.raises(KeyError, match="no finding"):
        HOME.change(HOME.studies(0, 0)[0], "left ear", "present")


def test_pairs_are_functions_of_their_seed_and_redraw_from_their_scene():
    first, again, other = (list(HOME.pairs(seed, 11, 64)) for seed in (1, 1, 2))
    assert first == again and first[0].image != other[0].image
    for pair in first:
        scene = json.loads(pair.scene)
        drawn = HOME.render(scene, 64)
        assert np.array_equal(drawn.image, decode_png(pair.image))
        assert HOME.report(scene) == pair.report and HOME.prompt(scene) == pair.prompt
        masks = decode_masks(pair.masks)
        assert masks.keys() == drawn.masks.keys() == pair.states.keys()
        assert all(np.array_equal(masks[label], drawn.masks[label]) for label in masks)
    assert HOME.render(scene, 64, noise=False).image.tobytes() == HOME.render(scene, 64, noise=False).image.tobytes()
