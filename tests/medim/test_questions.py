"""The questions: what is given stays, what is asked comes from the network, and each sample has its own seed."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_medim as tiny
import torch
from torch import Tensor, nn

from medim.backbones.towers import TowerSettings
from medim.diffusion.denoise import ModalityLogits
from medim.medim_training import build_medim
from medim.pairs import Pair, encode_png
from medim.pretrained import Beginning
from medim.questions import Questions, load_system
from medim.systems import TASKS, ReportLikelihood
from medim.tokenizers.vqgan import save_vqgan
from medim.training import step_seed


class Oracle(nn.Module):
    """A backbone that is certain of one pair, and remembers what it saw first."""

    def __init__(self, text: Tensor, codes: Tensor, n_text: int) -> None:
        super().__init__()
        self.text, self.codes, self.n_text = text, codes, n_text
        self.first: Tensor | None = None
        self.anchor = nn.Parameter(torch.zeros(1))  # says on which device the model is

    def forward(self, xt: Tensor, t: Tensor, positions: Tensor) -> ModalityLogits:
        self.first = xt if self.first is None else self.first
        text, image = tiny.LAYOUT.text, tiny.LAYOUT.image
        rows = self.text.expand(len(xt), -1)[positions[:, text]]
        codes = self.codes.expand(len(xt), -1)[positions[:, image]]
        return ModalityLogits(
            100.0 * nn.functional.one_hot(rows, self.n_text), 100.0 * nn.functional.one_hot(codes, tiny.CODES)
        )


def asked(certain: bool = True) -> Questions:
    model = tiny.medim()
    if certain:
        text = torch.tensor(model.tokenizer.encode(tiny.TEXTS[1], tiny.LAYOUT.n_text))
        model.backbone = Oracle(text, torch.arange(9), model.vocab.n_text)
    return Questions(model, tiny.vqgan(), tiny.SAMPLER)


def test_report_of_a_picture():
    questions = asked()
    codes = torch.full((2, 9), 7)
    answers = questions.image_to_report(codes, [1, 2])
    assert answers.texts == [tiny.TEXTS[1]] * 2
    assert answers.prompts == ["chest x-ray"] * 2
    assert answers.reports == ["there is a left effusion."] * 2
    assert torch.equal(answers.codes, codes)


def test_picture_of_a_report():
    answers = asked().report_to_image(tiny.TEXTS[2:], [1, 2])
    assert answers.texts == tiny.TEXTS[2:]
    assert answers.codes.tolist() == [list(range(9))] * 2
    expected = (tiny.vqgan().decode(torch.arange(9)[None]) + 1) * 127.5
    assert answers.images.shape == (2, 24, 24, 3)
    assert answers.images.dtype == np.uint8
    np.testing.assert_allclose(answers.images[0], expected[0].permute(1, 2, 0).numpy(), atol=0.51)


def test_joint_starts_from_nothing():
    questions = asked()
    answers = questions.joint([1, 2, 3])
    layout, mask = tiny.LAYOUT, questions.model.vocab.mask_id
    first = questions.model.backbone.first
    assert first.shape[0] == 3
    assert int((first != mask).sum()) == 6  # BOI and EOI of each
    assert bool((first[:, layout.text] == mask).all())
    assert answers.texts == [tiny.TEXTS[1]] * 3
    assert answers.evaluations == [4, 4, 4]


def test_a_prompt_begins_the_report():
    questions = asked(certain=False)
    answers = questions.prompted(["histology", "chest x-ray:"], [1, 2])
    assert answers.prompts == ["histology", "chest x-ray"]
    assert int((answers.codes < tiny.CODES).sum()) == 18


def test_a_begun_report_is_finished():
    questions = asked(certain=False)
    codes = torch.arange(9)[None]
    answers = questions.complete_report(["histology: there"], [4], codes)
    assert answers.texts[0].startswith("histology: there")
    assert torch.equal(answers.codes, codes)
    assert asked().complete_report(["chest x-ray: there is"], [4]).texts == [tiny.TEXTS[1]]


def test_erased_codes_are_filled_and_the_others_stay():
    codes = torch.full((2, 9), 20)
    erased = torch.zeros(2, 9, dtype=torch.bool)
    erased[0, 3:5] = erased[1, 8] = True
    answers = asked().fill_picture(codes, erased, tiny.TEXTS[:2], [1, 2])
    assert answers.codes.tolist() == [[20, 20, 20, 3, 4, 20, 20, 20, 20], [20] * 8 + [8]]
    assert answers.texts == tiny.TEXTS[:2]


def test_pictures_may_be_pixels():
    questions = asked(certain=False)
    images = np.random.default_rng(0).integers(256, size=(2, 24, 24, 3)).astype(np.uint8)
    codes = questions.codes_of(images)
    assert torch.equal(codes, questions.vqgan.encode(torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1))
    assert torch.equal(questions.image_to_report(images, [1, 2]).codes, codes)


def test_a_sample_depends_on_its_own_seed_only():
    questions = asked(certain=False)
    both, alone, other = (questions.joint(seeds) for seeds in ([5, 6], [6], [7]))
    assert both.texts[1] == alone.texts[0]
    assert torch.equal(both.codes[1], alone.codes[0])
    assert not torch.equal(other.codes[0], alone.codes[0])


def test_of_several_candidates_the_one_whose_halves_agree_best_is_kept():
    sizes = TowerSettings(code_width=4, channels=6, blocks=1, evidence=8, report_width=6, report_blocks=1, summary=5)
    model = tiny.medim(backbone=replace(tiny.BACKBONE, towers=sizes))
    one, three = (Questions(model, tiny.vqgan(), replace(tiny.SAMPLER, candidates=k)) for k in (1, 3))
    seeds, texts = [5, 6], tiny.TEXTS[:2]
    drawn = [one.report_to_image(texts, [step_seed(seed, k) if k else seed for seed in seeds]) for k in range(3)]
    agreement = torch.stack(
        [model.backbone.towers.agreement(model.sequence(one.text_ids(texts), answers.codes)) for answers in drawn]
    )
    assert float(agreement.std(0).min()) > 1e-4  # the candidates differ
    kept = three.report_to_image(texts, seeds)
    for i, best in enumerate(agreement.argmax(0).tolist()):
        assert torch.equal(kept.codes[i], drawn[best].codes[i])
    assert kept.evaluations == [3 * drawn[0].evaluations[0]] * 2
    assert torch.equal(three.report_to_image(texts[1:], [6]).codes[0], kept.codes[1])
    with pytest.raises(ValueError, match="this one has none: set the first two to 1"):
        Questions(tiny.medim(), tiny.vqgan(), replace(tiny.SAMPLER, candidates=2))


def test_towers_lead_draws_and_beams():
    """Both make pairs that the towers find to agree better than what is drawn without them."""
    sizes = TowerSettings(code_width=4, channels=6, blocks=1, evidence=8, report_width=6, report_blocks=1, summary=5)
    model = tiny.medim(backbone=replace(tiny.BACKBONE, towers=sizes))
    seeds, codes = list(range(12)), torch.arange(108).view(12, 9) % tiny.CODES
    texts = [tiny.TEXTS[i % 4] for i in range(12)]

    def agreement(**changes):
        asked = Questions(model, tiny.vqgan(), replace(tiny.SAMPLER, **changes))
        begun = [model.sequence(asked.text_ids(texts), None, 12), model.sequence(None, codes, 12)]
        ids = [asked._fill(one, seeds)[0] for one in begun]  # a decoded report need not be encoded as the same ids
        return [model.backbone.towers.agreement(one) for one in ids]

    at_once = {"text_steps": 1, "image_steps": 1}  # these towers have learned nothing that a [MASK] could hint at
    plain = agreement(**at_once)
    drawn = agreement(**at_once, draws=8, agreement_weight=1e4)
    searched = agreement(**at_once, text_beams=8, agreement_weight=1e4)
    for better, worse in ((drawn[0], plain[0]), (drawn[1], plain[1]), (searched[1], plain[1])):
        gain = better - worse
        assert float(gain.mean()) > 3 * float(gain.std()) / len(gain) ** 0.5
    torch.testing.assert_close(searched[0], plain[0])  # pictures are drawn as ever
    with pytest.raises(ValueError, match="the weight to 0"):
        Questions(tiny.medim(), tiny.vqgan(), replace(tiny.SAMPLER, text_beams=2, agreement_weight=1.0))
    Questions(tiny.medim(), tiny.vqgan(), replace(tiny.SAMPLER, text_beams=2))


def test_it_is_a_system(tmp_path):
    data = tiny.data(tmp_path / "tokens")
    build_medim(data, tiny.settings(), 0, Beginning()).save(tmp_path / "medim")
    save_vqgan(tiny.vqgan(), tmp_path / "vqgan")
    system = load_system(tmp_path / "medim", vqgan=tmp_path / "vqgan", sampler=tiny.SAMPLER, device=torch.device("cpu"))
    picture = encode_png(np.zeros((24, 24, 3), np.uint8))
    pairs = [Pair(f"p{i}", "s", "x", "a", "drawn", picture, "histology", "no mitoses are seen.") for i in range(2)]
    for task in TASKS:
        samples = system.generate(task, "a", pairs, [1, 2])
        assert [s.task for s in samples] == [task] * 2
        assert all((s.image is None) == (task == "image_to_report") for s in samples)
        assert all((s.report is None) == (task == "report_to_image") for s in samples)
        assert [s.pair_id for s in samples] == (["joint-1", "joint-2"] if task == "joint" else ["p0", "p1"])
    with pytest.raises(ValueError, match="no task 'draw'"):
        system.generate("draw", "a", pairs, [1, 2])


def test_a_task_may_have_a_sampler_of_its_own(tmp_path):
    data = tiny.data(tmp_path / "tokens")
    build_medim(data, tiny.settings(), 0, Beginning()).save(tmp_path / "medim")
    save_vqgan(tiny.vqgan(), tmp_path / "vqgan")
    system = load_system(
        tmp_path / "medim", vqgan=tmp_path / "vqgan", sampler=tiny.SAMPLER, device=torch.device("cpu"),
        sampler_of={"joint": replace(tiny.SAMPLER, text_steps=7)},
    )  # fmt: skip
    pair = Pair("p", "s", "x", "a", "drawn", encode_png(np.zeros((24, 24, 3), np.uint8)), "histology", "no mitoses.")
    passes = {task: system.generate(task, "a", [pair], [1])[0].evaluations for task in TASKS}
    assert passes == {"report_to_image": 3, "image_to_report": 4, "joint": 7}


def test_it_says_how_probable_a_report_is():
    """The oracle is certain of one text: log p 0, and every other word costs 100 nats."""
    questions, images = asked(), np.zeros((2, 24, 24, 3), np.uint8)
    assert isinstance(questions, ReportLikelihood)
    for shown in (None, images):
        right, wrong = questions.report_log_p([tiny.TEXTS[1], tiny.TEXTS[0]], shown, [1, 2], 16, 5)
        assert right == pytest.approx(0, abs=1e-6) and wrong < -100


def test_the_picture_is_seen_and_a_likelihood_depends_on_its_own_seed_only():
    questions, codes = asked(certain=False), torch.arange(9)[None]
    both = questions.report_log_p(tiny.TEXTS[:2], None, [5, 6], 8, 3)
    alone = questions.report_log_p(tiny.TEXTS[1:2], None, [6], 8, 64)
    assert both[1] == pytest.approx(alone[0], rel=1e-5)
    given = questions.report_log_p(tiny.TEXTS[1:2], codes, [6], 8, 64)
    assert given[0] != pytest.approx(alone[0], rel=1e-5)
    assert alone.dtype == np.float64 and alone[0] < 0


def test_another_codebook_is_refused():
    vqgan = tiny.vqgan()
    vqgan.codebook_size = 8
    with pytest.raises(ValueError, match="24 codes, the VQGAN has 8"):
        Questions(tiny.medim(), vqgan, tiny.SAMPLER)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_network_computes_in_the_precision_asked_for(precision, expected):
    asked = Questions(tiny.medim(), tiny.vqgan(), replace(tiny.SAMPLER, precision=precision))
    seen = []
    asked.model.register_forward_hook(lambda _module, _inputs, logits: seen.append(logits.text.dtype))
    asked.image_to_report(torch.zeros(2, 9, dtype=torch.int64), [0, 1])
    assert set(seen) == {expected}
