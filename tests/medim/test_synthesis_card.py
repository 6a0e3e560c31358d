"""The data card and the contact sheet of a generator that redraws phantoms, a third of them with wrong pictures."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from certain_reader import certain_reader
from redrawing import Redrawing

from medim.data.splits import drawn_pairs
from medim.evaluation import Reference
from medim.pairs import write_pairs
from medim.synthesis import Origin, PairScorer, SynthesisSettings, synthesize, write_held_out
from medim.synthesis_card import WARNING, CardSettings, contact_sheet, data_card
from medim.synthesis_filters import PairFilter, read_scores

CARD = CardSettings(50, (PairFilter(1.0, None, None), PairFilter(None, None, 0.05)), 3, 2)
PROMPTS = ("chest x-ray", "chest x-ray, normal", "chest x-ray, edema")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for split, count in (("train", 20), ("val", 8)):
        write_pairs(folder / f"{split}.parquet", drawn_pairs("phantom_cxr", split, 0, count, 32))
    reference = Reference("phantom_cxr", folder / "val.parquet", folder / "train.parquet", certain_reader("edema"))
    scorer = PairScorer(reference, folder / "train.parquet")
    settings = SynthesisSettings(30, 16, 8, "equal", 0)
    origin = Origin("redrawing", "abc", "phantom_cxr", 0)
    out = folder / "redrawing"
    synthesize(
        Redrawing("phantom_cxr"), PROMPTS * 10, scorer, origin, settings, folder / "work", out / "phantom_cxr.parquet"
    )
    write_held_out(out, {"phantom_cxr": scorer.held_out()})
    return out, reference


def line(card: str, start: str) -> list[str]:
    (found,) = [row for row in card.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_card_says_what_was_made_and_how_it_scores(made):
    folder, reference = made
    card = data_card("redrawing", {"model_hash": "abc"}, folder, {"phantom_cxr": reference}, CARD, 0)
    scores = read_scores(folder / "phantom_cxr.parquet")
    assert WARNING in card and '"model_hash": "abc"' in card and "30 pairs from 3 prompts." in card
    assert line(card, "alignment (phantom judge)")[1].startswith(f"{scores['alignment'].mean():.3f} (")
    assert line(card, "valid sentences")[1:] == ["1.000 (1.000–1.000)"] * 2
    assert line(card, "pmi of report and picture, nats")[1:] == ["not measured"] * 2
    assert line(card, "chest x-ray, edema")[1] == "10"
    asked = line(card, "alignment ≥ 1")
    faithful = scores["faithful"].mean()
    assert [cell.split(" ")[0] for cell in asked[1:]] == [f"{faithful:.3f}", f"{faithful:.3f}", "1.000", "1.000"]
    assert line(card, "off")[1] == "1.000 (1.000–1.000)" and "no independent evidence" in card
    again = data_card("redrawing", {"model_hash": "abc"}, folder, {"phantom_cxr": reference}, CARD, 0)
    assert again == card


def test_a_contact_sheet_shows_pairs_of_all_prompts(made):
    folder, reference = made
    page = contact_sheet(folder / "phantom_cxr.parquet", "redrawing", reference, CARD)
    assert page.width == 3 * (2 * 32 + 20) + 1
    rows = pq.read_table(folder / "phantom_cxr.parquet").to_pylist()
    assert len({rows[place * 30 // 9]["asked"] for place in range(9)}) == 3
    again = contact_sheet(folder / "phantom_cxr.parquet", "redrawing", reference, CARD)
    np.testing.assert_array_equal(np.asarray(page), np.asarray(again))
    with pytest.raises(ValueError, match="columns must be at least 1"):
        CardSettings(10, (), 0, 1)
