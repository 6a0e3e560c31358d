"""What the writers of R2Gen and R2GenCMN share: loss, nats, writing, first weights, configuration."""

import json
from dataclasses import asdict

import pytest
import torch
from tiny_writers import CMN, EXTRACTOR, OPTIM, PROMPT, R2GEN, REPORTS, WORDS, network, writer

from medim.baselines.encoder_decoder_writer import Writing, new_writer, writer_of_config
from medim.baselines.method_settings import read_settings
from medim.baselines.r2gen import R2GenSettings
from medim.baselines.report_words import EDGE, ReportWords, WordSettings
from medim.baselines.visual_extractor import VisualExtractor, save_extractor

BOTH = pytest.mark.parametrize("sizes", [R2GEN, CMN], ids=["r2gen", "r2gen_cmn"])
TEXTS = [f"{PROMPT}: {report}" for report in REPORTS]
DRAWS = torch.Generator()


def pictures(batch=3, seed=0):
    return torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def nats_by_steps(one, image, text):
    """-log p of words and end, one word at a time."""
    state, word, total = one.network.start(one.extractor(image)), EDGE, 0.0
    for following in [*one.words.encode(text), EDGE]:
        log_p, state = one.network.step(torch.tensor([word]), state)
        total -= float(log_p[0, following])
        word = following
    return total


@BOTH
@torch.no_grad()
def test_nats_are_those_of_each_text_alone(sizes):
    one, images = writer(sizes), pictures()
    nats, count = one.nats(images, TEXTS[:3])
    by_hand = [nats_by_steps(one, images[n : n + 1], TEXTS[n]) for n in range(3)]
    assert float(nats) == pytest.approx(sum(by_hand), rel=1e-4)
    assert int(count) == sum(len(one.words.encode(text)) + 1 for text in TEXTS[:3])
    assert float(one.loss(images, TEXTS[:3], DRAWS)) == pytest.approx(float(nats) / int(count), rel=1e-5)


@torch.no_grad()
def test_what_is_cut_is_not_learned_but_counts_in_validation():
    one = writer(writing=Writing(4, True, 1))
    images = pictures(1)
    cut = f"{PROMPT}: the"
    assert len(one.words.encode(cut)) == 4
    nats, count = one.nats(images, [cut])
    end = -float(one.network.step(*behind(one, images, cut))[0][0, EDGE])
    assert float(one.loss(images, TEXTS[:1], DRAWS)) == pytest.approx((float(nats) - end) / 4, rel=1e-4)
    assert int(count) == 5 and int(one.nats(images, TEXTS[:1])[1]) == len(one.words.encode(TEXTS[0])) + 1


def behind(one, images, text):
    """Last word of a text and the state before it."""
    state, words = one.network.start(one.extractor(images)), [EDGE, *one.words.encode(text)]
    for word in words[:-1]:
        _, state = one.network.step(torch.tensor([word]), state)
    return torch.tensor(words[-1:]), state


@BOTH
def test_written_texts_are_long_enough_at_most_and_the_same_alone(sizes):
    one, images = writer(sizes, writing=Writing(5, False, 3)), pictures(4)
    texts = one.write(images, range(4))
    assert all(len(text.split()) <= 5 for text in texts)
    assert [one.write(images[n : n + 1], [9])[0] for n in range(4)] == texts


@BOTH
def test_a_writer_is_made_again_of_its_config(sizes):
    first = writer(sizes, seed=1)
    text = json.dumps(first.config())
    again = writer_of_config(json.loads(text), lambda features, ids: network(sizes, features, ids))
    again.load_state_dict(first.state_dict())
    assert json.dumps(again.config()) == text and again.writing == first.writing
    assert again.eval().write(pictures(), range(3)) == first.write(pictures(), range(3))


@BOTH
def test_gradients_are_finite_in_bfloat16(sizes):
    one = writer(sizes).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = one.loss(pictures(), TEXTS[:3], DRAWS)
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.isfinite().all() for p in one.parameters())


def settings(words=WORDS, **changes):
    values = {
        "extractor": asdict(EXTRACTOR), "network": asdict(R2GEN), "words": words, "beams": 2, "val_pairs": 4,
        "start": None, "pretraining": None, "frozen": [], "optim": asdict(OPTIM),
    } | changes  # fmt: skip
    return read_settings(R2GenSettings, values, "here")


def make(features, ids):
    return network(R2GEN, features, ids)


def test_a_new_writer_has_the_words_of_its_texts_and_the_first_weights_given(tmp_path):
    torch.manual_seed(5)
    pretrained = VisualExtractor(EXTRACTOR)
    save_extractor(pretrained, tmp_path)
    one = new_writer(TEXTS, settings(start=str(tmp_path)), make, "r2gen", None)
    assert one.words.words == ReportWords.build(TEXTS, 1, "plain").words
    assert one.writing == Writing(16, False, 2)
    for name, value in pretrained.state_dict().items():
        assert torch.equal(one.extractor.state_dict()[name], value), name


def test_long_training_texts_are_refused_unless_they_may_be_cut(capsys):
    with pytest.raises(ValueError, match=r"6 of 6 training texts .*params.yaml:train_baseline.settings.r2gen.words"):
        new_writer(TEXTS, settings(WORDS | {"max_length": 3}), make, "r2gen", None)
    one = new_writer(TEXTS, settings(WORDS | {"max_length": 3, "long_texts": "cut"}), make, "r2gen", None)
    assert one.writing.cut and "6 of 6" in capsys.readouterr().out


def test_impossible_values_are_named():
    for values in ((0, True, 1), (1, True, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            Writing(*values)
    assert WordSettings(**WORDS).long_texts == "error"
