"""The sweep: one thing at a time, the default in every series it belongs to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_world import tiny

from benchmarks.sampler_grid import CHOICES, FULL, MODALITY, PANELS, base_of, changes, name_of, number_of, series_of

BASE = replace(tiny.SAMPLER, text_length="first", text_steps=24, image_steps=16, image_order="confidence")


CHOICE = replace(FULL, panels=("choice",))


@pytest.mark.parametrize("task", MODALITY)
def test_one_thing_changes_beside_the_steps_and_only_of_what_is_sampled(task):
    modality = MODALITY[task]
    together = [{"commit", "commit_level"}, {"schedule", "shift"}, {"steps", "schedule", "shift"}]
    for series in series_of(BASE, task, replace(FULL, panels=tuple(panel for panel in PANELS if panel != "choice"))):
        for settings in series.settings:
            names = set(changes(BASE, settings))
            assert all(name.startswith(f"{modality}_") for name in names)
            short = {name.removeprefix(f"{modality}_") for name in names}
            assert len(short - {"steps"}) <= 1 or any(short <= pair for pair in together), (series.label, names)


def test_the_default_stands_where_it_belongs():
    for task, order in (("image_to_report", "random"), ("report_to_image", "confidence")):
        with_default = {(s.panel, s.label) for s in series_of(BASE, task, FULL) if BASE in s.settings}
        assert with_default == {
            ("schedule", "cosine"), ("order", order), ("commit", "count"), ("guidance", "guidance"),
            ("temperature", "temperature"), *(("choice", s.label) for s in series_of(BASE, task, CHOICE)),
        }  # fmt: skip


def test_the_series_are_those_that_were_asked_for():
    found = series_of(BASE, "image_to_report", FULL)
    labels = {panel: [s.label for s in found if s.panel == panel] for panel in PANELS}
    assert labels["schedule"] == ["cosine", "linear", "arccos", "shift 0.33", "shift 3"]
    assert labels["order"] == ["confidence", "random", "raster"]
    assert labels["commit"] == ["count", "threshold", "factor", "profile"]
    cosine = next(s for s in found if s.label == "cosine")
    assert [one.text_steps for one in cosine.settings] == [4, 8, 16, 24, 32, 64]
    linear = next(s for s in found if s.label == "linear")
    assert [one.text_steps for one in linear.settings] == [4, 8, 16, 32, 64]
    assert [s.label for s in series_of(BASE, "report_to_image", FULL) if s.panel == "order"][-1] == "halton"
    guided = next(s for s in found if s.panel == "guidance")
    assert [one.text_guidance for one in guided.settings] == [0, 1, 2, 4]


def test_a_default_of_another_kind_is_added():
    base = replace(BASE, image_order="raster", image_guidance=3.0, image_schedule="shift", image_shift=2.0)
    found = series_of(base, "report_to_image", FULL)
    assert [s.label for s in found if s.panel == "order"] == ["confidence", "random", "halton", "raster"]
    assert [s.label for s in found if s.panel == "schedule"][-3:] == ["shift 0.33", "shift 2", "shift 3"]
    assert {s.panel for s in found if base in s.settings} == set(PANELS)


@pytest.mark.parametrize("length", ["free", "hazard"])
def test_only_reports_written_from_left_to_right_have_their_length_drawn_while_they_are(length):
    base = replace(BASE, text_order="raster", text_length=length)
    found = series_of(base, "image_to_report", FULL)
    lengths = {s.label: {one.text_length for one in s.settings} for s in found if s.panel in ("order", "commit")}
    assert lengths == {
        "confidence": {"first"}, "random": {"first"}, "raster": {length}, "count": {length}, "threshold": {"first"},
        "factor": {"first"}, "profile": {"first"},
    }  # fmt: skip
    assert {one.text_length for s in found if s.panel == "guidance" for one in s.settings} == {length}
    pictures = series_of(base, "report_to_image", FULL)
    assert {one.text_length for s in pictures for one in s.settings} == {length}


def test_under_an_adaptive_default_schedules_are_measured_with_count():
    base = replace(BASE, text_commit="threshold", text_commit_level=0.8)
    found = series_of(base, "image_to_report", FULL)
    assert {one.text_commit for s in found if s.panel in ("schedule", "order") for one in s.settings} == {"count"}
    threshold = next(s for s in found if s.label == "threshold")
    assert base in threshold.settings


def test_each_kind_of_choice_begins_with_none():
    found = {s.label: s.settings for s in series_of(BASE, "report_to_image", CHOICE)}
    assert list(found) == ["candidates", "draws, weight 3", "draws, weight 8", "draws, weight 20"]
    assert {settings[0] for settings in found.values()} == {BASE}
    assert [one.candidates for one in found["candidates"]] == [1, 2, 4]
    assert [(one.draws, one.agreement_weight) for one in found["draws, weight 8"][1:]] == [(2, 8), (8, 8), (32, 8)]
    assert all(sum(getattr(one, what) > 1 for what in CHOICES) <= 1 for s in found.values() for one in s)


def test_a_default_that_chooses_stands_in_its_own_series_only():
    base = replace(BASE, text_order="raster", text_length="free", text_beams=3, agreement_weight=3.0)
    found = series_of(base, "image_to_report", FULL)
    assert [s.label for s in found if s.panel == "choice" and base in s.settings] == ["text_beams, weight 3"]
    wider = next(s for s in found if s.label == "text_beams, weight 3")
    assert [number_of(one) for one in wider.settings] == [1, 2, 3, 4]
    assert wider.settings[0] == replace(base, text_beams=1, agreement_weight=0.0)
    assert next(s for s in found if s.label == "guidance").settings[1].text_beams == 3  # beams read the guidance
    unread = [s for s in found if s.panel in ("schedule", "order", "commit", "temperature")]
    assert {one.text_beams for s in unread for one in s.settings} == {1}


def test_a_default_that_chooses_in_several_ways_is_reached_one_way_after_the_other():
    base = replace(BASE, draws=32, candidates=2, agreement_weight=8.0)
    found = series_of(base, "report_to_image", CHOICE)
    assert found[0].settings[0] == BASE
    last = found[-1]
    assert (last.panel, last.label) == ("choice", "draws 32 + candidates 2")
    assert last.settings == (BASE, replace(base, candidates=1), base)
    assert [number_of(one) for one in last.settings] == [1, 32, 64]


def test_sentences_drawn_anew_are_a_way_to_choose():
    changes = {"draws": 32, "agreement_weight": 8.0, "text_order": "raster", "text_length": "hazard", "text_redraws": 5}
    base = replace(BASE, **changes)
    found = series_of(base, "image_to_report", CHOICE)
    assert {one.text_redraws for series in found[:-1] for one in series.settings} == {0}
    assert found[-1].label == "draws 32 + text_redraws 5"
    assert found[-1].settings == (found[0].settings[0], replace(base, text_redraws=0), base)
    pictures = series_of(base, "report_to_image", CHOICE)  # which have no sentences
    assert [s.label for s in pictures if base in s.settings] == ["draws, weight 8"]


def test_names_say_what_differs():
    assert name_of(BASE, BASE) == "default"
    assert name_of(BASE, replace(BASE, text_order="raster", text_steps=8)) == "text_steps=8,text_order=raster"
    assert name_of(BASE, replace(BASE, text_commit="profile")) == "text_commit=profile,text_commit_level=0.0"


def test_a_sampler_without_orders_is_refused():
    assert base_of(replace(BASE, text_lead=0.5)) == BASE
    with pytest.raises(ValueError, match="method ancestral and pool modality"):
        base_of(replace(BASE, method="ancestral"))
