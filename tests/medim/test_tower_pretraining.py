"""Contrastive training: closed forms, what is contrasted with what, and that towers learn what belongs together."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_medim as tiny
import torch

from medim.backbones.towers import Towers, TowerSettings
from medim.medim_training import TokenData, Tokens
from medim.model import TokenBatch
from medim.tower_pretraining import (
    TowerTrainee,
    TowerTraining,
    contrastive_nats,
    masked_parts,
    pretrain_towers,
    save_towers,
    validation_scores,
)
from medim.vocab import SharedVocab

SIZES = TowerSettings(code_width=4, channels=8, blocks=1, evidence=16, report_width=8, report_blocks=1, summary=8)
OPTIM = replace(tiny.OPTIM, steps=4, batch_size=8, accumulate=1, lr=5e-3)
TRAINING = TowerTraining(masked=0.5, cut=0.5, spliced=0.5, val_pairs=32)


def test_nats_have_closed_forms():
    assert float(contrastive_nats(torch.zeros(8, 8))) == pytest.approx(math.log(8))
    assert float(contrastive_nats(1e4 * torch.eye(5))) == 0
    logits = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    rows = math.log1p(math.exp(-1)) + math.log1p(math.exp(-1))
    columns = math.log1p(math.exp(1)) + math.log1p(math.exp(-3))
    assert float(contrastive_nats(logits)) == pytest.approx((rows + columns) / 4)
    wrong = torch.tensor([[0.5], [-2.0]])  # a report that is nobody's: pictures may take it for theirs
    rows = math.log1p(math.exp(-1) + math.exp(-0.5)) + math.log1p(math.exp(-1) + math.exp(-5))
    assert float(contrastive_nats(logits, wrong)) == pytest.approx((rows + columns) / 4)


def parts(masked, cut, length=30, pairs=8000):
    """Masked codes (of 50) and words (of 40, `length` before the end) of many pairs."""
    tokens = torch.full((pairs,), length)
    return masked_parts(tokens, (50, 40), TowerTraining(masked, cut, 0.0, 32), torch.Generator().manual_seed(0))


def test_a_share_of_the_pairs_has_a_part_of_one_half_masked_at_uniform_rates():
    assert not any(part.any() for part in parts(0.0, 0.5))
    for part, cut in zip(parts(0.6, 0.0), (50, 40), strict=True):
        rates = part.float().mean(1)
        assert float((rates > 0).float().mean()) == pytest.approx(0.3 * (1 - 1 / (cut + 1)), abs=0.02)
        assert float(rates[rates > 0].mean()) == pytest.approx(0.5 / (1 - 1 / (cut + 1)), abs=0.03)
        assert float(rates[rates > 0].std()) == pytest.approx((1 / 12) ** 0.5, abs=0.03)
    codes, words = parts(1.0, 0.5)
    assert not (codes.any(1) & words.any(1)).any(), "one half is whole"


def test_a_cut_leaves_the_words_before_it_and_nothing_behind():
    """What the towers are shown while a report is written: a beginning of any length, and no end."""
    _, words = parts(1.0, 1.0)
    words = words[words.any(1)]
    kept = (~words).sum(1)
    assert torch.equal(words, torch.arange(40) >= kept[:, None])
    share = torch.bincount(kept, minlength=31) / len(kept)
    torch.testing.assert_close(share, torch.full((31,), 1 / 31), rtol=0, atol=0.012)


class FixedTowers(torch.nn.Module):
    """Similarities that are given."""

    def __init__(self, similarities):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(()))
        self.fixed = similarities

    def similarities(self, _codes, _ids):
        return self.fixed


def test_pairs_are_contrasted_within_their_dataset():
    """Between datasets everything is alike, within each a pair's own is certain: nothing is left to pay."""
    similarities = torch.full((4, 4), 1e4)
    similarities[0, 1] = similarities[1, 0] = similarities[2, 3] = similarities[3, 2] = -1e4
    vocab, words = SharedVocab(30, 24), tiny.tokenizer()
    trainee = TowerTrainee(FixedTowers(similarities), vocab, words, TRAINING, datasets=2, steps=10)
    batch = TokenBatch(
        torch.zeros(4, 20, dtype=torch.int64), torch.zeros(4, 9, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    )
    loss, logs = trainee.loss("towers", batch, 0, torch.Generator().manual_seed(0))
    assert float(loss) == 0
    assert float(logs["own_report_nearest"]) == 1
    trainee = TowerTrainee(FixedTowers(similarities), vocab, words, TRAINING, datasets=1, steps=10)
    assert float(trainee.loss("towers", batch, 0, torch.Generator().manual_seed(0))[0]) == pytest.approx(math.log(3))


class Reading(torch.nn.Module):
    """Similarities of 0; keeps the reports that it was asked about."""

    def __init__(self):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(()))
        self.read = []

    def similarities(self, codes, ids):
        self.read.append(ids)
        return torch.zeros(len(codes), len(ids))


def test_in_the_last_steps_every_report_has_a_copy_with_a_sentence_too_many():
    """Within its dataset: a picture chooses among twice as many reports, a report among as many pictures."""
    words, length = tiny.tokenizer(), 60
    said = [["No effusion.", "The heart is normal."], ["A nodule."], ["Mucin."], ["Necrosis.", "No mucin."]]
    text = torch.tensor([words.encode("scan: " + " ".join(report), length) for report in said])
    batch = TokenBatch(text, torch.zeros(4, 9, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    towers, none = Reading(), replace(TRAINING, masked=0.0)
    trainee = TowerTrainee(towers, SharedVocab(words.size, 24), words, none, datasets=2, steps=10)
    losses = [float(trainee.loss("towers", batch, s, torch.Generator().manual_seed(s))[0]) for s in (4, 5)]
    assert losses == pytest.approx([math.log(2), (math.log(4) + math.log(2)) / 2])
    assert torch.equal(towers.read[0], text) and torch.equal(towers.read[1][:4], text)
    wrong = [words.decode(row) for row in towers.read[1][4:].tolist()]
    assert "A nodule." in wrong[0] and ("effusion" in wrong[1] or "heart" in wrong[1])
    assert "mucin" not in "".join(wrong[:2]).lower()


class Knowing(Towers):
    """Real towers, but that a report is as near as its first word says."""

    def similarities(self, codes, ids):
        return ids[:, 0].float().expand(len(codes), -1)


def test_how_often_the_own_report_beats_its_splice(monkeypatch):
    """Of four copies one is told to be nearer, one as near, two further away."""
    words, data = tiny.tokenizer(), tiny.tokens(4)
    first = torch.from_numpy(data.text[:, 0].astype(np.int64))
    changed = torch.from_numpy(data.text.astype(np.int64)).clone()
    changed[:, 0] = first + torch.tensor([1, 0, -1, -2])
    monkeypatch.setattr("medim.tower_pretraining.spliced", lambda *_: changed)
    towers = Knowing(SharedVocab(words.size, tiny.CODES), tiny.LAYOUT, SIZES).eval()
    assert validation_scores(towers, {"a": data}, 4, words)["a/own_beats_spliced"] == 0.5


def test_a_single_validation_pair_is_refused_before_training(tmp_path):
    data = told_data(tmp_path / "data")
    with pytest.raises(ValueError, match="a has fewer than two validation pairs"):
        pretrain(replace(data, val={"a": told_pairs(1, 2)}), tmp_path / "out")


def told_pairs(num, seed):
    """Pictures with one special code, in the left or in the right half; the report's words name code and half."""
    rng = np.random.default_rng(seed)
    kind, right = rng.integers(3, size=num), rng.integers(2, size=num)
    image = rng.integers(8, 12, size=(num, 16))
    image[np.arange(num), 4 * rng.integers(4, size=num) + 3 * right] = kind
    text = rng.integers(100, 110, size=(num, 20))
    text[np.arange(num), rng.integers(10, size=num)] = 50 + kind
    text[np.arange(num), rng.integers(10, 20, size=num)] = 70 + right
    zeros = np.zeros(num, np.int32)
    return Tokens(tuple(f"p{i}" for i in range(num)), text.astype(np.int32), image.astype(np.int32), zeros, zeros + 20)


def told_data(folder):
    tiny.tokenizer().save(folder)
    codebook = torch.randn(tiny.CODES, 4, generator=torch.Generator().manual_seed(3))
    return TokenData({"a": told_pairs(2000, 0), "b": told_pairs(2000, 1)}, {"a": told_pairs(12, 2)}, folder, codebook)


def pretrain(data, out, optim=OPTIM, training=TRAINING, sizes=SIZES):
    return pretrain_towers(
        data, sizes, training, optim, seed=5, work=out.with_name(out.name + "_work"), out=out,
        on_log=lambda *_: None, device=torch.device("cpu"),
    )  # fmt: skip


def test_towers_learn_what_belongs_together(tmp_path):
    """6 kinds of pairs: the nearest of 200 unseen reports is one of the picture's kind."""
    data = told_data(tmp_path / "data")
    optim = replace(OPTIM, steps=160, batch_size=64, warmup=10, lr=4e-3, ema=0.9)
    sizes = replace(SIZES, code_width=16, channels=16, evidence=32, report_width=32, summary=32)
    towers = pretrain(data, tmp_path / "out", optim, replace(TRAINING, masked=0.0), sizes).averaged
    unseen = told_pairs(200, 9)
    with torch.no_grad():
        batch = unseen.batch(np.arange(200))
        nearest = towers.similarities(batch.image, batch.text).argmax(1).numpy()

    def kind(row):
        return sorted(t for t in unseen.text[row] if t < 100)

    right = np.mean([kind(i) == kind(int(j)) for i, j in enumerate(nearest)])
    assert right > 0.7  # by chance 1 / 6


def test_the_same_weights_twice_and_scores_with_chance_beside(tmp_path):
    data = told_data(tmp_path / "data")
    first = pretrain(data, tmp_path / "first").averaged
    pretrain(data, tmp_path / "second")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    scores = validation_scores(first, data.val, 8, tiny.tokenizer())
    assert scores["a/chance"] == 1 / 8


def test_batches_hold_every_dataset(tmp_path):
    data = told_data(tmp_path / "data")
    with pytest.raises(ValueError, match="as many pairs of each of the 2 datasets, two at least, got 7"):
        pretrain(data, tmp_path / "out", replace(OPTIM, batch_size=7))
    with pytest.raises(ValueError, match="two at least, got 2"):
        pretrain(data, tmp_path / "out", replace(OPTIM, batch_size=4, accumulate=2))
    with pytest.raises(ValueError, match=r"pretrain_towers.training.masked must lie in \[0, 1\], got 2"):
        TowerTraining(masked=2, cut=0, spliced=0, val_pairs=1)
    with pytest.raises(ValueError, match=r"pretrain_towers.training.cut must lie in \[0, 1\], got -1"):
        TowerTraining(masked=0, cut=-1, spliced=0, val_pairs=1)


def test_no_towers_are_said_to_be_none(tmp_path):
    save_towers(None, None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"towers": None}
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
