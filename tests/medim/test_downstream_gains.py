"""Gains of the downstream study: from answered reports to the cells of Figure 5b."""

import numpy as np
import pytest
from certain_reader import certain_reader

from medim.data.splits import drawn_pairs
from medim.downstream_gains import compared_models, downstream_page, matched_seeds
from medim.evaluation import Evaluation, EvaluationSettings, Reference, as_json
from medim.generation import read_generated
from medim.metrics.image_quality import QualitySettings
from medim.metrics.java import Meteor
from medim.pairs import TableWriter, write_pairs
from medim.systems import GENERATED_SCHEMA, Sample
from medim.table_cells import build_table, read_gains, read_metrics
from medim.table_render import render_html, render_markdown
from medim.tables import get_table, phantom_world

MODELS = ("r2gen_real", "r2gen_real_seed1", "r2gen_real_medim", "r2gen_real_medim_seed1", "bllm_real")
RIGHT = {"r2gen_real": 4, "r2gen_real_seed1": 6, "r2gen_real_medim": 9, "r2gen_real_medim_seed1": 8, "bllm_real": 3}
GAIN, CHEST = "MeDiM, gain over real only", "phantom_cxr"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Each model answers its first RIGHT pairs with the true report and the others with that of another pair."""
    folder = tmp_path_factory.mktemp("study")
    for split, count in (("train", 12), ("test", 16)):
        write_pairs(folder / f"{split}.parquet", drawn_pairs(CHEST, split, 0, count, 32))
    reference = Reference(CHEST, folder / "test.parquet", folder / "train.parquet", certain_reader("edema"))
    test = reference.test
    for model, right in RIGHT.items():
        with TableWriter(folder / model / CHEST / "image_to_report.parquet", GENERATED_SCHEMA) as writer:
            for n, pair in enumerate(test):
                said = pair.report if n < right else test[(n * 7 + right) % 16].report
                sample = Sample("R2Gen", "image_to_report", CHEST, pair.pair_id, n, None, "chest x-ray", said, 0)
                writer.write(sample.record())
    settings = EvaluationSettings(50, QualitySettings(1, 2, 4, 3, 5), None, None, ())
    with Meteor() as meteor:
        evaluation = Evaluation({CHEST: reference}, {CHEST: "chest x-ray"}, settings, meteor, 0)
        answers = {m: read_generated(folder / m / CHEST / "image_to_report.parquet") for m in MODELS[:4]}
        metrics = {
            m: {"model": m, "rows": {"R2Gen": as_json(evaluation.row(samples))}} for m, samples in answers.items()
        }
        page = downstream_page(folder, {CHEST: reference}, MODELS, evaluation, 200)
    return metrics, page


def gains_of(built):
    return {c["column"]: c for c in built["cells"] if c["row"] == GAIN and c["value"] is not None}


def test_a_gain_is_that_of_the_means_over_seeds_with_an_interval(study):
    metrics, page = study
    assert set(page["gains"]) == {"r2gen_real_medim over r2gen_real"}
    plain = gains_of(build_table(get_table("figure5b"), metrics, phantom_world("phantom")))
    paired = gains_of(build_table(get_table("figure5b"), metrics, phantom_world("phantom"), page["gains"]))
    assert plain.keys() == paired.keys() and len(plain) > 15
    for column, cell in plain.items():
        assert paired[column]["value"] == pytest.approx(cell["value"], abs=1e-6), column
        assert (cell["low"], cell["high"]) == (None, None)
        assert (paired[column]["n"], paired[column]["seeds"]) == (16, 2)
    bleu = paired[f"{CHEST}/BLEU-1 (nltk)"]
    assert bleu["low"] < bleu["value"] < bleu["high"] and bleu["value"] > 0
    entry = page["gains"]["r2gen_real_medim over r2gen_real"][f"{CHEST}/image_to_report/BLEU-1 (nltk)"]
    means = [
        np.mean(
            [metrics[m]["rows"]["R2Gen"][f"{CHEST}/image_to_report/BLEU-1 (nltk)"]["value"] for m in MODELS[k : k + 2]]
        )
        for k in (0, 2)
    ]
    assert entry["absolute"]["value"] == pytest.approx(means[1] - means[0], abs=1e-9)


def test_the_interval_is_printed_with_its_signs(study):
    metrics, page = study
    built = build_table(get_table("figure5b"), metrics, phantom_world("phantom"), page["gains"])
    cell = gains_of(built)[f"{CHEST}/BLEU-1 (nltk)"]
    text = f"{cell['value']:+.1f} % ({cell['low']:+.1f} to {cell['high']:+.1f})"
    assert text in render_markdown(built) and f"{cell['low']:+.1f} to" in render_html(built)


def test_gains_are_asked_for_where_both_models_answered():
    assert compared_models(MODELS) == [("r2gen_real_medim", "r2gen_real")]
    names = {
        f"{model}_{mix}" for model in ("r2gen", "bllm") for mix in ("real", "real_unidisc", "real_medim", "real_twice")
    }
    assert len(compared_models(names)) == 6
    further = compared_models({"bllm_real", "bllm_medim_then_real", "bllm_tenth_real", "bllm_tenth_real_unidisc"})
    assert further == [("bllm_tenth_real_unidisc", "bllm_tenth_real"), ("bllm_medim_then_real", "bllm_real")]
    assert matched_seeds("r2gen_real_medim", "r2gen_real", MODELS) == [
        ("r2gen_real_medim", "r2gen_real"), ("r2gen_real_medim_seed1", "r2gen_real_seed1")
    ]  # fmt: skip


def test_only_seeds_of_both_are_compared():
    assert matched_seeds("r2gen_real_medim", "r2gen_real", MODELS[:3]) == [("r2gen_real_medim", "r2gen_real")]
    with pytest.raises(ValueError, match=r"needs a training seed that both have, got \['a_seed1'\] and \['b'\]"):
        matched_seeds("a", "b", ["a_seed1", "b"])


def test_where_nothing_was_compared_there_are_no_intervals(tmp_path):
    assert read_gains(tmp_path) == {} and read_metrics(tmp_path, []) == {}
    (tmp_path / "downstream.json").write_text('{"models": {"r2gen_real": {"rows": {}}}, "gains": {"a over b": {}}}')
    assert read_gains(tmp_path) == {"a over b": {}}
    assert read_metrics(tmp_path, []) == {"r2gen_real": {"rows": {}}}


def test_the_page_holds_what_evaluate_says_of_each_model(study):
    metrics, page = study
    assert {name: page["models"][name] for name in metrics} == metrics
    assert set(page["models"]) == set(MODELS)
