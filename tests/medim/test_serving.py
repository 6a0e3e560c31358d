"""A generator answers rows as its system would, and says which row and column it cannot read."""

import base64
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import tiny_medim as tiny
import torch

from medim.pairs import Pair, encode_png, full_text
from medim.questions import Questions
from medim.serving import OUTPUTS, Generator, open_generator
from medim.tokenizers.vqgan import save_vqgan


def picture(side=24, other=None):
    rng = np.random.default_rng(side)
    return encode_png(rng.integers(0, 256, (other or side, side, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def generator():
    return Generator(Questions(tiny.medim(), tiny.vqgan(), tiny.SAMPLER), 2)


def test_answers_are_the_systems_own_in_the_order_of_the_rows(generator):
    told = {"prompt": "chest x-ray", "report": "the heart is large."}
    rows = [
        {"task": "joint", "seed": 1, "prompt": "", "report": None, "image": float("nan")},
        {"task": "report_to_image", "seed": np.int64(2), **told},
        {"task": "image_to_report", "seed": 3, "image": base64.b64encode(picture()).decode()},
        {"task": "joint", "seed": 4},
        {"task": "joint", "seed": 1},
    ]
    answers = generator.predict(rows)
    assert [(one["task"], one["seed"]) for one in answers] == [(row["task"], row["seed"]) for row in rows]
    assert all(list(one) == list(OUTPUTS) for one in answers)
    assert answers[0] == answers[4] and answers[0] != answers[3]
    asked = generator.system
    drawn = asked.report_to_image([full_text(**told)], [2])
    assert answers[1]["image"] == encode_png(drawn.images[0]) and answers[1]["report"] == told["report"]
    pair = Pair("", "", "", "", "", picture(), "", "")
    (read,) = asked.generate("image_to_report", "", [pair], [3])
    assert (answers[2]["report"], answers[2]["prompt"], answers[2]["image"]) == (read.report, read.prompt, picture())


def test_each_task_has_the_sampler_of_params_yaml(tmp_path):
    tiny.medim().save(tmp_path / "a")
    save_vqgan(tiny.vqgan(), tmp_path / "b")
    settings = {
        "sampler": asdict(tiny.SAMPLER), "sampler_of": {"joint": {"text_steps": 2, "image_steps": 2}}, "chunk": 7,
        "sampler_of_model": {"medim": {"image_steps": 1}, "unidisc": {"text_steps": 9}},
    }  # fmt: skip
    opened = open_generator({"medim": tmp_path / "a", "vqgan": tmp_path / "b"}, settings)
    assert opened.chunk == 7
    own = replace(tiny.SAMPLER, image_steps=1)
    assert opened.system.settings == opened.system.settings_of["report_to_image"] == own
    assert opened.system.settings_of["joint"] == replace(own, text_steps=2)
    assert opened.system.model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"task": "draw"}, "column 'task': got 'draw'; this model answers report_to_image, image_to_report, joint"),
        ({"task": "joint", "seed": -1}, "column 'seed': expected a whole number"),
        ({"task": "joint", "seed": None}, "column 'seed': expected a whole number"),
        ({"task": "joint", "seed": True}, "column 'seed': expected a whole number"),
        ({"task": "joint", "report": "a"}, "column 'report': joint does not start from it"),
        ({"task": "report_to_image", "report": "a"}, "column 'prompt': report_to_image starts from it"),
        ({"task": "report_to_image", "report": "a", "prompt": "b: c"}, "column 'prompt': may not hold ':'"),
        ({"task": "report_to_image", "report": 5, "prompt": "b"}, "column 'report': expected a text, got int"),
        ({"task": "image_to_report"}, "column 'image': image_to_report starts from it"),
        ({"task": "image_to_report", "image": "no!"}, "column 'image': no base64"),
        ({"task": "image_to_report", "image": b"GIF"}, "column 'image': no picture"),
        ({"task": "image_to_report", "image": [1]}, "column 'image': expected the bytes of a picture or base64"),
        ({"task": "image_to_report", "image": picture(24, 32)}, "expected a square picture, got 24 x 32"),
        ({"task": "image_to_report", "image": picture(32)}, "32 pixels a side, row 0 has 24"),
    ],
)
def test_what_cannot_be_read_is_named(generator, row, said):
    rows = [{"task": "image_to_report", "seed": 1, "image": picture()}, {"seed": 1} | row]
    with pytest.raises(ValueError, match="row 1, column") as error:
        generator.predict(rows)
    assert re.search(re.escape(said), str(error.value))


def test_a_picture_that_the_model_refuses_is_named(generator):
    with pytest.raises(ValueError, match="image_to_report: rows 0, column image: a picture has 9 tokens here"):
        generator.predict([{"task": "image_to_report", "seed": 1, "image": picture(32)}])
