"""A further domain is one module and one line in the registry."""

import json
import sys

import numpy as np
import pytest

import medim.data
from medim.data.domain import labels_of
from medim.data.splits import drawn_pairs
from medim.pairs import decode_masks, decode_png, read_pairs, write_pairs

MODULE = """
import json
import numpy as np
from medim.data.domain import Finding, Rendered
from medim.pairs import Pair, encode_masks, encode_png


class Grammar:
    def read(self, report):
        return {"dark spot": "present"} if "a dark spot" in report else {}

    def is_valid(self, sentence):
        return sentence in ("The skin shows a dark spot.", "The skin is even.")


class Toy:
    name = "toy_dermoscopy"
    findings = (Finding("dark spot", sided=False),)
    grammar = Grammar()

    def studies(self, seed, patient):
        return [{"patient": patient, "study": 0, "spot": (seed + patient) % 2 == 1}]

    def render(self, scene, size, noise=True):
        image = np.full((size, size, 3), (220, 180, 160), np.uint8)
        mask = np.zeros((size, size), bool)
        mask[size // 4 : size // 2, size // 4 : size // 2] = scene["spot"]
        image[mask] = (60, 40, 30)
        return Rendered(image, {"dark spot": mask} if scene["spot"] else {})

    def report(self, scene):
        return "The skin shows a dark spot." if scene["spot"] else "The skin is even."

    def prompt(self, scene):
        return "dermoscopy"

    def truth(self, scene):
        return {"dark spot": "present"} if scene["spot"] else {}

    def pairs(self, seed, patient, size):
        for scene in self.studies(seed, patient):
            drawn = self.render(scene, size)
            name = f"{self.name}-{patient:07d}"
            yield Pair(f"{name}-0", f"{name}-0", name, self.name, f"seed {seed}", encode_png(drawn.image),
                       self.prompt(scene), self.report(scene), json.dumps(self.truth(scene)), json.dumps(scene),
                       encode_masks(drawn.masks))


DOMAIN = {"toy_dermoscopy": Toy()}
"""


@pytest.fixture
def toy_dataset(tmp_path, monkeypatch):
    (tmp_path / "toy_dermoscopy_domain.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(medim.data.DOMAINS, "toy_dermoscopy", "toy_dermoscopy_domain")
    yield "toy_dermoscopy"
    sys.modules.pop("toy_dermoscopy_domain", None)


def test_a_further_domain_is_a_module_and_a_line_in_the_registry(toy_dataset):
    assert medim.data.is_drawn(toy_dataset)
    domain = medim.data.get_domain(toy_dataset)
    assert labels_of(domain.findings) == ("dark spot",)
    (pair,) = domain.pairs(0, 1, 64)
    assert pair.full_text == "dermoscopy: The skin shows a dark spot."
    assert domain.grammar.read(pair.report) == pair.states == domain.truth(json.loads(pair.scene))
    assert (decode_png(pair.image)[decode_masks(pair.masks)["dark spot"]] == (60, 40, 30)).all()


def test_its_pairs_go_through_the_same_parquet_and_splits(toy_dataset, tmp_path):
    path = tmp_path / "train.parquet"
    assert write_pairs(path, drawn_pairs(toy_dataset, "train", seed=0, count=6, size=32)) == 6
    pairs = read_pairs(path)
    assert [bool(pair.states) for pair in pairs] == [False, True] * 3
    test = next(drawn_pairs(toy_dataset, "test", seed=0, count=1, size=32))
    assert test.patient_id not in {pair.patient_id for pair in pairs}


@pytest.mark.parametrize("dataset", ["phantom_pathology", "drawings"])
def test_the_registered_domains_answer_to_the_same_calls(dataset):
    domain = medim.data.get_domain(dataset)
    assert domain.name == dataset
    for patient in (0, 10_000_000, 20_000_000):
        for pair in domain.pairs(0, patient, 32):
            scene = json.loads(pair.scene)
            assert pair.dataset == dataset and pair.pair_id == f"{dataset}-{patient:07d}-{scene['study']}"
            assert pair.report == domain.report(scene) and pair.prompt == domain.prompt(scene)
            assert np.array_equal(decode_png(pair.image), domain.render(scene, 32).image)
            assert pair.states == domain.truth(scene) == domain.grammar.read(pair.report)


def test_an_unknown_domain_is_named_with_the_known_ones():
    with pytest.raises(KeyError, match=r"'phantom_retina'.*phantom_pathology"):
        medim.data.get_domain("phantom_retina")
