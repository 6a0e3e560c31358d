"""The finding reader on a domain of coloured blobs whose truth is known, and its parts by their definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medim.data import get_domain
from medim.data.domain import STATES, Finding, Rendered, labels_of
from medim.data.splits import SPLITS, drawn_pairs
from medim.metrics import finding_reader as fr
from medim.metrics import reader_phantoms
from medim.training import Optimisation

STRENGTH = {"uncertain": 50, "present": 160}


class Blobs:
    """Blobs of one colour a finding, in the left or right half; faint where uncertain. Domains differ by background."""

    grammar: Any = None

    def __init__(self, name: str, background: int, findings: tuple[Finding, ...]) -> None:
        self.name, self.background, self.findings = name, background, findings

    def studies(self, seed: int, patient: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng([seed, patient])
        states = {label: STATES[int(rng.choice(3, p=(0.6, 0.15, 0.25)))] for label in labels_of(self.findings)}
        return [{"seed": int(rng.integers(2**31)), "states": states}]

    def truth(self, scene: Mapping[str, Any]) -> dict[str, str]:
        return {label: state for label, state in scene["states"].items() if state != "absent"}

    def render(self, scene: Mapping[str, Any], size: int, noise: bool = True) -> Rendered:
        rng = np.random.default_rng(scene["seed"])
        image = np.full((size, size, 3), self.background, np.float64) + rng.normal(0, 4, (size, size, 3))
        masks = {}
        for label, state in self.truth(scene).items():
            number = [finding.name for finding in self.findings].index(label.split()[-1])
            low, high = (0.55, 0.75) if label.startswith("right") else (0.1, 0.3)
            y, x = (rng.uniform((0.3, low), (0.5, high)) * size).astype(int)
            masks[label] = np.zeros((size, size), bool)
            masks[label][y : y + size // 4, x : x + size // 4] = True
            image[masks[label], number] += STRENGTH[state]
        return Rendered(np.clip(image, 0, 255).astype(np.uint8), masks)


DOMAINS: dict[str, Any] = {
    "bright": Blobs("bright", 80, (Finding("red", True), Finding("green", True))),
    "dark": Blobs("dark", 20, (Finding("green", True), Finding("blue", False))),
}
OPTIM = Optimisation(
    steps=160, batch_size=32, accumulate=1, lr=8e-3, warmup=10, restarts=1, weight_decay=0.01, beta1=0.9, beta2=0.99,
    clip=1.0, ema=0.95, precision="fp32", checkpoint_every=1000, validate_every=0, log_every=80,
)  # fmt: skip
CPU = torch.device("cpu")


def train(folder: Path, optim: Optimisation, pictures: int = 400) -> dict[str, float]:
    logs: dict[str, float] = {}
    fr.train_finding_reader(
        DOMAINS, fr.ReaderSettings(pictures, held_out=100, size=32, width=16), optim=optim, seed=3,
        work=folder / "work", out=folder / "reader", on_log=lambda _, values: logs.update(values), device=CPU,
    )  # fmt: skip
    return logs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[fr.FindingReader, dict[str, float]]:
    folder = tmp_path_factory.mktemp("reader")
    logs = train(folder, OPTIM)
    return fr.load_finding_reader(folder / "reader"), logs


def small_reader(seed: int = 0) -> fr.FindingReader:
    torch.manual_seed(seed)
    config = fr.ReaderConfig({name: labels_of(d.findings) for name, d in DOMAINS.items()}, width=4, size=32)
    return fr.FindingReader(config).eval()


def pictures(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_it_reads_states_sides_and_domains(trained):
    reader, logs = trained
    assert logs["val/bright/f1"] > 0.9 and logs["val/dark/f1"] > 0.9 and logs["val/domain_accuracy"] > 0.9
    drawn = reader_phantoms.draw_phantoms(DOMAINS, 99, 0, 40, 32)
    names = fr.domains_of(reader, drawn.images.numpy())
    assert [names[i] for i in (0, -1)] == ["bright", "dark"]


def test_mirrored_pictures_swap_sides(trained):
    reader, _ = trained
    scene = {"seed": 1, "states": {"left red": "present", "right red": "absent", "left green": "absent"}}
    image = DOMAINS["bright"].render(scene, 32).image
    found = fr.read_pictures(reader, np.stack([image, image[:, ::-1]]), "bright")
    assert "left red" in found[0] and "right red" not in found[0]
    assert "right red" in found[1] and "left red" not in found[1]


def test_other_picture_sizes_are_read_too(trained):
    reader, _ = trained
    drawn = reader_phantoms.draw_phantoms({"dark": DOMAINS["dark"]}, 5, 0, 30, 64)
    predicted = fr.state_probabilities(reader, drawn.images.numpy(), "dark").argmax(-1)
    assert (predicted == drawn.states.numpy()).mean() > 0.8


def test_training_twice_gives_the_same_bytes(tmp_path):
    short = dataclasses.replace(OPTIM, steps=3)
    train(tmp_path / "a", short, 40)
    train(tmp_path / "b", short, 40)
    files = [tmp_path / run / "reader" / "model.safetensors" for run in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_saved_reader_reads_the_same(tmp_path):
    reader = small_reader()
    fr.save_finding_reader(reader, tmp_path)
    np.testing.assert_array_equal(
        fr.features(fr.load_finding_reader(tmp_path), pictures(3)), fr.features(reader, pictures(3))
    )


def test_features_do_not_depend_on_the_batch():
    reader, images = small_reader(), pictures(130)  # more than one batch
    together = fr.features(reader, images)
    assert together.shape == (130, fr.FEATURES) and together.dtype == np.float32 and (together >= 0).all()
    np.testing.assert_allclose(together[129:], fr.features(reader, images[129:]), rtol=1e-4, atol=1e-5)


def test_absent_findings_are_left_out_and_no_pictures_give_no_findings():
    reader = small_reader()
    for found in fr.read_pictures(reader, pictures(8), "dark"):
        assert set(found) <= set(labels_of(DOMAINS["dark"].findings)) and set(found.values()) <= {
            "uncertain",
            "present",
        }
    assert fr.read_pictures(reader, pictures(0), "dark") == []


def test_class_logits_are_log_probabilities_by_hand():
    reader, images = small_reader(), pictures(4)
    logits = fr.class_logits(reader, images).astype(np.float64)
    assert logits.shape == (4, (1 + 4) + (1 + 3))
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)
    p = fr.state_probabilities(reader, images, "bright")[0].astype(np.float64)
    shares = np.array([np.prod([row[0] for row in p]), *(row[2] + row[1] / 2 for row in p)])
    bright = np.exp(logits[0, :5])
    np.testing.assert_allclose(bright / bright.sum(), shares / shares.sum(), rtol=1e-4)


def test_domains_with_the_same_labels_share_a_head():
    labels = ("left a", "right a")
    reader = fr.FindingReader(fr.ReaderConfig({"one": labels, "two": labels, "three": ("b",)}, width=4, size=32))
    assert len(reader.heads) == 2 and reader.head_of("one") == reader.head_of("two") != reader.head_of("three")


def test_held_out_scores_are_those_of_findings():
    """The same F1 as `finding_scores` gives for what `read_pictures` reads."""
    from medim.metrics.findings import finding_scores

    reader, unseen = small_reader(), reader_phantoms.draw_phantoms(DOMAINS, 0, 0, 12, 32)
    labels = labels_of(DOMAINS["bright"].findings)
    true = [{k: STATES[s] for k, s in zip(labels, row, strict=True) if s} for row in unseen.states[:12].tolist()]
    read = fr.read_pictures(reader, unseen.images[:12].numpy(), "bright")
    expected = finding_scores(true, read, labels, seed=0, resamples=2)["finding_f1"].value
    assert fr.held_out_scores(reader, unseen)["bright/f1"] == pytest.approx(expected)


def test_batches_are_a_function_of_the_step_and_cover_an_epoch():
    drawn = reader_phantoms.draw_phantoms(DOMAINS, 0, 0, 8, 32)
    batch = reader_phantoms.epochs(drawn, batch_size=8, seed=1, accumulate=2)
    seen = torch.cat([batch(step, part).images.flatten(1) for step in range(2) for part in range(2)])
    assert torch.equal(batch(1, 1).images, batch(1, 1).images)
    assert {tuple(row.tolist()) for row in seen} == {tuple(row.tolist()) for row in drawn.images.flatten(1)}


@pytest.mark.parametrize("dataset", ["phantom_cxr", "phantom_pathology"])
def test_models_never_see_its_patients(tmp_path, dataset):
    """Patients of the pairs that each split draws, and of the scenes that a reader trains and is tested on."""
    domain, drawn = get_domain(dataset), []

    class Watched:
        name, findings, truth, render = domain.name, domain.findings, domain.truth, domain.render

        def studies(self, seed: int, patient: int) -> list[dict[str, Any]]:
            drawn.append(next(domain.pairs(seed, patient, 32)).patient_id)
            return domain.studies(seed, patient)

    watched: Any = Watched()
    fr.train_finding_reader(
        {dataset: watched}, fr.ReaderSettings(40, held_out=20, size=32, width=8), seed=3, work=tmp_path / "work",
        optim=dataclasses.replace(OPTIM, steps=1), out=tmp_path / "reader", on_log=lambda *_: None, device=CPU,
    )  # fmt: skip
    assert len(drawn) == len(set(drawn)) > 20  # what it is tested on is not what it learned from either
    models = {pair.patient_id for split in SPLITS for pair in drawn_pairs(dataset, split, 0, 40, 32)}
    assert len(models) > 40 and models.isdisjoint(drawn)


def test_errors_name_what_is_wrong(tmp_path):
    reader = small_reader()
    with pytest.raises(KeyError, match="knows bright, dark, not 'xray'"):
        fr.read_pictures(reader, pictures(1), "xray")
    with pytest.raises(ValueError, match="uint8"):
        fr.features(reader, np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(FileNotFoundError, match="dvc repro train_finding_reader"):
        fr.load_finding_reader(tmp_path)
    with pytest.raises(ValueError, match="fewer than a batch"):
        reader_phantoms.epochs(reader_phantoms.draw_phantoms(DOMAINS, 0, 0, 2, 32), 64, 0, 1)


def test_augmentation_moves_nothing():
    x = torch.full((6, 3, 16, 16), -0.5)
    x[:, :, 4:8, 2:6] = 0.5
    changed = fr.blur_and_noise(x, torch.Generator().manual_seed(0))
    assert ((changed[:, :, 5:7, 3:5].mean((1, 2, 3)) - changed[:, :, 12:, 12:].mean((1, 2, 3))) > 0.85).all()
    again = fr.blur_and_noise(x, torch.Generator().manual_seed(0))
    assert torch.equal(changed, again)


def test_rows_of_drawn_phantoms_are_padded():
    drawn = reader_phantoms.draw_phantoms(DOMAINS, 0, 0, 3, 32)
    assert len(drawn) == 6 and drawn.images.shape == (6, 32, 32, 3)
    assert (drawn.states[3:, 3] == reader_phantoms.UNLABELLED).all() and (drawn.states[:3] >= 0).all()
    assert drawn.domain.tolist() == [0, 0, 0, 1, 1, 1]
