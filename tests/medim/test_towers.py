"""Towers beside the decoder's embedding: they start as nothing, see what is given only, and say it at its place."""

from dataclasses import asdict, replace

import pytest
import tiny_medim as tiny
import torch

from medim.backbones.mllm import MLLM, BackboneSettings
from medim.backbones.towers import PictureTower, Towers, TowerSettings
from medim.model import MeDiM
from medim.pretrained import load_towers
from medim.residual_cnn import side_maxima
from medim.tower_pretraining import save_towers
from medim.vocab import SequenceLayout, SharedVocab

SIZES = TowerSettings(code_width=4, channels=6, blocks=1, evidence=8, report_width=6, report_blocks=2, summary=5)
BACKBONE = replace(tiny.BACKBONE, towers=SIZES)
VOCAB = SharedVocab(tiny.tokenizer().size, tiny.CODES)
LAYOUT = SequenceLayout(n_text=20, n_image=16)


def sequences(num=3, seed=0):
    """Half-masked shared ids (num, L)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(num, LAYOUT.length, dtype=torch.int64)
    ids[:, LAYOUT.text] = torch.randint(VOCAB.n_text, (num, LAYOUT.n_text), generator=generator)
    ids[:, LAYOUT.image] = VOCAB.from_codes(torch.randint(VOCAB.n_image, (num, LAYOUT.n_image), generator=generator))
    hidden = torch.rand(ids.shape, generator=generator) < 0.5
    hidden[:, [0, LAYOUT.image.stop]] = False
    return torch.where(hidden, VOCAB.mask_id, ids)


def backbone(seed=0, layout=LAYOUT, **changes):
    torch.manual_seed(seed)
    return MLLM(VOCAB, layout, replace(BACKBONE, **changes)).eval()


def loud(model, *names):
    """Draws these maps, which start at 0."""
    for name in names:
        torch.nn.init.normal_(model.towers.maps[name].weight)
    return model


@pytest.mark.parametrize("patch", [1, 2])
def test_the_decoder_starts_as_without_towers(patch):
    with_towers = backbone(code_patch=patch)
    without = MLLM(VOCAB, LAYOUT, replace(BACKBONE, code_patch=patch, towers=None)).eval()
    without.load_state_dict({k: v for k, v in with_towers.state_dict().items() if not k.startswith("towers.")})
    ids, t = sequences(), torch.tensor([0.2, 0.5, 1.0])
    torch.testing.assert_close(with_towers.hidden(ids, t), without.hidden(ids, t), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("report_summary", LAYOUT.image),
        ("picture", LAYOUT.image),
        ("picture_pooled", LAYOUT.text),
        ("report", LAYOUT.text),
    ],
)
def test_each_map_speaks_at_its_own_positions(name, positions):
    added = loud(backbone(), name).towers(sequences())
    spoken = added.abs().sum((0, 2)) > 0
    wanted = torch.zeros(LAYOUT.length, dtype=torch.bool)
    wanted[positions] = True
    assert torch.equal(spoken, wanted)


def test_what_was_seen_at_a_place_is_the_pictures_own_and_summaries_are_the_others():
    first, second = sequences(seed=0), sequences(seed=1)
    mixed = torch.cat([first[:, : LAYOUT.text.start], second[:, LAYOUT.text]], 1)
    places = loud(backbone(), "picture", "report").towers
    torch.testing.assert_close(places(mixed)[:, LAYOUT.image], places(first)[:, LAYOUT.image], rtol=0, atol=0)
    torch.testing.assert_close(places(mixed)[:, LAYOUT.text], places(second)[:, LAYOUT.text], rtol=0, atol=0)
    summaries = loud(backbone(), "picture_pooled", "report_summary").towers
    torch.testing.assert_close(summaries(mixed)[:, LAYOUT.image], summaries(second)[:, LAYOUT.image], rtol=0, atol=0)
    torch.testing.assert_close(summaries(mixed)[:, LAYOUT.text], summaries(first)[:, LAYOUT.text], rtol=0, atol=0)


def test_words_are_told_the_most_and_the_mean_of_each_half_and_of_all():
    model = loud(backbone(), "picture_pooled").towers
    ids, codes = sequences(), torch.arange(48).view(3, 16) % VOCAB.n_image
    ids[:, LAYOUT.image] = VOCAB.from_codes(codes)
    evidence = model.towers.picture(codes)
    left, right = evidence[..., :1], evidence[..., 1:]
    pooled = [left.amax((2, 3)), right.amax((2, 3)), evidence.amax((2, 3)), evidence.mean((2, 3))]
    expected = model.maps["picture_pooled"](torch.cat(pooled, 1))
    torch.testing.assert_close(model(ids)[:, LAYOUT.text], expected[:, None].expand(-1, LAYOUT.n_text, -1))


def test_a_cell_stands_where_its_codes_stand():
    """Code patches of 2: the decoder's grid is the tower's, cell by cell."""
    model = loud(backbone(code_patch=2), "picture")
    sixteen = sequences(1)
    sixteen[:, LAYOUT.image] = VOCAB.from_codes(torch.zeros(1, 16, dtype=torch.int64))
    other = sixteen.clone()
    other[:, LAYOUT.image.start + 15] = VOCAB.from_codes(torch.ones(1, dtype=torch.int64))  # last of the 4 x 4 codes
    evidence, changed = (
        model.towers.towers.picture(ids[:, LAYOUT.image] - VOCAB.image_offset) for ids in (sixteen, other)
    )
    rows = model.towers(other)[0, 1:5] - model.towers(sixteen)[0, 1:5]
    expected = (changed - evidence).flatten(2).transpose(1, 2) @ model.towers.maps["picture"].weight.T
    torch.testing.assert_close(rows, expected[0])


def test_the_towers_stand_still_while_the_denoiser_trains_and_the_copied_words_learn():
    model = loud(backbone(), "picture", "picture_pooled", "report", "report_summary").train()
    before = {name: value.clone() for name, value in model.towers.towers.state_dict().items()}
    ids = sequences()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.hidden(ids, torch.full((3,), 0.5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.towers.maps["picture"].parameters())
    optimiser.step()
    after = model.towers.towers.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    learned = dict(model.towers.words.named_parameters())
    assert not any(torch.equal(before[f"report.words.{name}"], value) for name, value in learned.items())
    again = model.towers(ids)
    torch.testing.assert_close(again, model.eval().towers(ids), rtol=0, atol=0)  # BatchNorm as in evaluation


def test_a_saved_model_brings_its_towers(tmp_path):
    torch.manual_seed(0)
    model = MeDiM(tiny.tokenizer(), tiny.CODES, tiny.LAYOUT, BACKBONE, "log_linear").eval()
    loud(model.backbone, "picture", "report_summary")
    model.save(tmp_path)
    again = MeDiM.load(tmp_path)
    assert again.backbone.settings == BACKBONE
    ids = model.sequence(torch.full((1, 20), 3), torch.full((1, 9), 5))
    torch.testing.assert_close(again.backbone.towers(ids), model.backbone.towers(ids), rtol=0, atol=0)


def test_pretrained_towers_are_loaded_and_others_refused(tmp_path):
    torch.manual_seed(1)
    towers = Towers(VOCAB, LAYOUT, SIZES)
    save_towers(towers, SIZES, tmp_path / "towers")
    model = backbone()
    assert load_towers(model, tmp_path / "towers") == len(towers.state_dict())
    for name, value in model.towers.towers.state_dict().items():
        torch.testing.assert_close(value, towers.state_dict()[name], rtol=0, atol=0)
    torch.testing.assert_close(model.towers.words.embed.weight, towers.report.words.embed.weight, rtol=0, atol=0)
    save_towers(towers, replace(SIZES, blocks=2), tmp_path / "other")
    with pytest.raises(ValueError, match=r"blocks=2.*dvc repro pretrain_towers"):
        load_towers(model, tmp_path / "other")
    save_towers(Towers(SharedVocab(VOCAB.n_text, 30), LAYOUT, SIZES), SIZES, tmp_path / "codes")
    with pytest.raises(ValueError, match=r"does not fit the backbone at \['picture.embed.weight'\]"):
        load_towers(model, tmp_path / "codes")
    with pytest.raises(FileNotFoundError, match="dvc repro pretrain_towers"):
        load_towers(model, tmp_path / "nowhere")


def test_left_and_right_are_kept_apart():
    x = torch.zeros(1, 1, 3, 4)
    x[0, 0, 1, 3] = 2.0
    assert [float(v) for v in side_maxima(x)] == [0.0, 2.0, 2.0]
    assert [float(v) for v in side_maxima(x.flip(3))] == [2.0, 0.0, 2.0]


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"towers.blocks must be at least 1, got 0"):
        replace(SIZES, blocks=0)
    with pytest.raises(ValueError, match="set towers: null"):
        replace(BACKBONE, causal=True)
    with pytest.raises(ValueError, match="a square of codes, got 12"):
        PictureTower(8, 12, SIZES)
    assert BackboneSettings(**(BACKBONE.to_dict() | {"towers": asdict(SIZES)})) == BACKBONE


def test_log_odds_of_versions_are_what_the_towers_compare():
    model = backbone()
    versions = torch.stack([sequences(4, seed) for seed in range(3)])  # (M, B, L), half of it [MASK]
    one_picture, one_report = versions.clone(), versions.clone()
    one_picture[:, :, LAYOUT.image] = versions[:1, :, LAYOUT.image]
    one_report[:, :, LAYOUT.text] = versions[:1, :, LAYOUT.text]
    for ids in (versions, one_picture, one_report, versions[:1]):
        expected = []
        for version in ids:
            text, image = version[:, LAYOUT.text], version[:, LAYOUT.image]
            codes = torch.where(
                image == VOCAB.mask_id, VOCAB.n_image, VOCAB.to_codes(image.clamp(min=VOCAB.image_offset))
            )
            words = torch.where(text == VOCAB.mask_id, VOCAB.n_text, text)
            expected.append(model.towers.towers.similarities(codes, words).diagonal())
        torch.testing.assert_close(model.towers.log_odds(ids), torch.stack(expected))
    assert float(model.towers.log_odds(versions).std(0).min()) > 1e-3


def test_a_half_that_versions_share_is_looked_at_once(monkeypatch):
    model = backbone()
    seen = []
    forward = PictureTower.forward
    monkeypatch.setattr(PictureTower, "forward", lambda self, codes: seen.append(len(codes)) or forward(self, codes))
    ids = sequences(4)[None].repeat(5, 1, 1)
    ids[:, :, LAYOUT.text] = torch.stack([sequences(4, seed)[:, LAYOUT.text] for seed in range(5)])
    model.towers.log_odds(ids)
    assert seen == [4]
