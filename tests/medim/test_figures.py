"""Figures: pixels that can be checked by hand, marks, order, and the same bytes each time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medim import figures
from medim.evaluation import Evaluation
from medim.figures import AGREES, DISAGREES, GREEN, RED, Panel
from medim.pairs import encode_png
from medim.systems import Sample

RED_PICTURE = np.full((8, 8, 3), (255, 0, 0), np.uint8)


def colours(page) -> set[tuple[int, ...]]:
    return {tuple(int(v) for v in pixel) for pixel in np.asarray(page).reshape(-1, 3)}


def test_enlarging_repeats_pixels():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = np.asarray(figures.enlarge(image, 35))
    assert large.shape == (32, 32, 3)
    np.testing.assert_array_equal(large[::4, ::4], image)
    np.testing.assert_array_equal(large[3::4, 3::4], image)


def test_findings_are_compared_by_state():
    said = {"left effusion": "present", "edema": "uncertain", "nodule": "present"}
    shown = {"left effusion": "present", "edema": "present", "mass": "uncertain"}
    assert [mark for _, mark in figures.compare_findings(said, shown)] == [DISAGREES, AGREES, DISAGREES, DISAGREES]
    assert figures.disagreement(said, shown) == 0.5 + 1 + 0.5
    assert figures.disagreement(said, said) == 0 and figures.compare_findings({}, {}) == ()


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), max_size=20), st.integers(0, 25))
def test_worst_cases_are_the_largest(scores, count):
    chosen = figures.worst_cases(scores, count)
    assert len(chosen) == min(count, len(scores)) == len(set(chosen))
    assert [scores[i] for i in chosen] == sorted(scores, reverse=True)[:count]


@settings(deadline=None)
@given(st.text("ab c", max_size=200), st.integers(20, 200))
def test_wrapping_keeps_the_letters_and_the_width(text, width):
    lines = figures.wrap(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(figures.font().getlength(line) <= width for line in lines)


def test_words_are_kept_whole_where_they_fit():
    assert figures.wrap("one  two\nthree", 1000) == ["one two three"]
    assert figures.wrap("one two three", 40) == ["one", "two", "three"]


def test_a_grid_holds_the_pictures_and_marks_findings():
    panel = Panel(RED_PICTURE, "a title", "some words", (("yes", AGREES), ("nothing here", DISAGREES)))
    page = figures.draw_grid([[panel, panel]], 32)
    pixels = np.asarray(page)
    assert (pixels == (255, 0, 0)).all(-1).sum() == 2 * 32 * 32
    assert figures.GREEN in colours(page) and colours(page) & {(195, 25, 25), (196, 26, 26), (196, 27, 27)}
    plain = figures.draw_grid([[Panel(RED_PICTURE)]], 32)
    assert GREEN not in colours(plain) and RED not in colours(plain)


def test_the_same_page_has_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        panels = {"one": [Panel(RED_PICTURE, text="x")], "two": [Panel(None, text="y")]}
        figures.save_png(figures.figure4(panels, 32), tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_systems_must_answer_the_same_prompts():
    with pytest.raises(ValueError, match="same prompts"):
        figures.figure7({"one": [Panel(None)], "two": []}, 32)
    with pytest.raises(ValueError, match="at least one panel"):
        figures.draw_grid([], 32)


def test_figure8_shows_the_worst_first():
    cases = [(Panel(np.full((8, 8, 3), value, np.uint8)), float(value)) for value in (10, 90, 50)]
    pixels = np.asarray(figures.figure8(cases, columns=2, count=2, side=8))
    first = np.argmax((pixels == 90).all(-1).any(0))
    second = np.argmax((pixels == 50).all(-1).any(0))
    assert 0 < first < second and not (pixels == 10).all(-1).any()


def fake_reference(shown: dict[str, str]) -> SimpleNamespace:
    truth = SimpleNamespace(
        image=encode_png(RED_PICTURE), report="edema", prompt="given", findings='{"edema": "present"}'
    )  # fmt: skip
    grammar = SimpleNamespace(read=lambda report: {"edema": "present"} if "edema" in report else {})
    return SimpleNamespace(
        dataset="d", by_id={"p": truth}, domain=SimpleNamespace(grammar=grammar), labels=("edema",),
        read_images=lambda images: [shown] * len(images), reader=SimpleNamespace(config=SimpleNamespace(domains={})),
    )  # fmt: skip


def sample(task: str, image, report, number: int = 0) -> SimpleNamespace:
    return SimpleNamespace(task=task, dataset="d", pair_id="p", image=image, report=report, prompt="x-ray", seed=number)


def test_panels_hold_what_was_given_and_what_was_made():
    references = {"d": fake_reference({})}
    panel, score = figures.panel_of(sample("image_to_report", None, "clear"), references)
    np.testing.assert_array_equal(panel.image, RED_PICTURE)
    assert panel.text == "x-ray: clear" and score == 1 and panel.findings[0][1] == DISAGREES
    panel, score = figures.panel_of(sample("report_to_image", RED_PICTURE // 2, None), references)
    assert panel.text == "given: edema" and score == 1  # the prompt that was asked, not that of a training pair
    panel, score = figures.panel_of(sample("image_to_report", None, "edema"), references)
    assert score == 0 and panel.findings[0][1] == AGREES


def test_a_free_sample_that_nothing_recognises_belongs_to_no_dataset():
    reader = SimpleNamespace(config=SimpleNamespace(domains={"phantom_cxr": ()}))
    chest = SimpleNamespace(dataset="chest", reader=reader)
    sample = Sample("MeDiM", "joint", "", "joint-0", 0, RED_PICTURE, "under", "renal", 3)
    assert figures.reference_of(sample, {"chest": chest}) is None
    panel, score = figures.panel_of(sample, {"chest": chest})
    assert panel.title == "joint" and panel.text == "under: renal" and score == 0
    evaluation = Evaluation({"chest": chest}, {"chest": "chest x-ray"}, None, None, 0)
    assert evaluation.turned_into([sample, replace(sample, prompt="chest x-ray")]) == ["", "chest"]


def test_reconstructions_stand_under_what_they_were_made_of():
    rng = np.random.default_rng(0)
    true, made = (rng.integers(1, 255, (5, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    page = np.asarray(figures.reconstruction_page({"a": (true, made), "b": (made, true)}, columns=3, zoom=4))
    gap, line, side = figures.GAP, figures.LINE, 32
    assert page.shape == (4 * (line + side + 2 * gap), 3 * (side + gap) + gap, 3)
    for row, pictures in enumerate((true, made, made, true)):
        top = row * (line + side + 2 * gap) + line + gap
        for column in range(3):
            left = gap + column * (side + gap)
            np.testing.assert_array_equal(page[top : top + side : 4, left : left + side : 4], pictures[column])
