"""A training in two parts: the first steps see the first pairs alone, the later ones the others."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_writer as tiny

from medim.baselines.base import TrainingOrder, TrainInputs
from medim.baselines.report_writer import WriterData
from medim.baselines.writer_training import balanced_writer_batches, ordered_writer_batches
from medim.pairs import Pair, encode_png, write_pairs

OPTIM = replace(tiny.OPTIM, steps=10, batch_size=4)


def data(prefix: str, count: int) -> WriterData:
    images = np.zeros((count, 4, 4, 3), np.uint8)
    return WriterData(images, tuple(f"{prefix}{n}" for n in range(count)))


def test_first_steps_see_the_first_pairs_and_later_ones_the_others():
    both = {"a": data("a", 10), "b": data("b", 7)}
    order = TrainingOrder({"a": 4, "b": 3}, 0.3)
    batches = ordered_writer_batches(both, OPTIM, 1, order)
    first = {text for step in range(3) for text in batches(step, 0).texts}
    later = {text for step in range(3, 10) for text in batches(step, 0).texts}
    assert first == {*(f"a{n}" for n in range(4)), *(f"b{n}" for n in range(3))}
    assert later == {*(f"a{n}" for n in range(4, 10)), *(f"b{n}" for n in range(3, 7))}
    assert all(sum(text[0] == "a" for text in batches(step, 0).texts) == 2 for step in range(10))


def test_without_an_order_every_step_is_as_ever():
    both = {"a": data("a", 5), "b": data("b", 5)}
    plain, none = balanced_writer_batches(both, OPTIM, 1), ordered_writer_batches(both, OPTIM, 1, None)
    assert all(plain(step, 0).texts == none(step, 0).texts for step in range(10))


def test_both_parts_need_pairs():
    with pytest.raises(ValueError, match=r"\(first, later\) \{'b': \(3, 0\)\}"):
        ordered_writer_batches({"a": data("a", 5), "b": data("b", 3)}, OPTIM, 0, TrainingOrder({"a": 2, "b": 3}, 0.5))


def pair(number: int, report: str) -> Pair:
    picture = encode_png(np.full((8, 8, 3), 90, np.uint8))
    return Pair(f"p{number}", f"p{number}", f"p{number}", "d", "", picture, "x-ray", report)


@pytest.mark.parametrize(("order", "said"), [(TrainingOrder({"d": 8}, 0.2), "clear"), (None, "edema")])
def test_what_was_trained_on_last_is_what_is_said(order, said, tmp_path):
    """8 pairs say edema, then 7 say clear: drawn from together, edema is the more frequent."""
    pairs = [pair(n, "edema") for n in range(8)] + [pair(n, "clear") for n in range(8, 15)]
    write_pairs(tmp_path / "train.parquet", pairs)
    write_pairs(tmp_path / "val.parquet", pairs[:2])
    files = {"d": {"train": tmp_path / "train.parquet", "val": tmp_path / "val.parquet"}}
    inputs = TrainInputs(files, ("d",), {}, 0, tmp_path / "work", tmp_path / "out", lambda *_: None, order=order)
    tiny.train(inputs)
    (answer,) = tiny.load_system(tmp_path / "out").generate("image_to_report", "d", pairs[:1], [0])
    assert (answer.prompt, answer.report) == ("x-ray", said)


def test_a_killed_training_in_two_parts_ends_with_the_same_weights(tmp_path):
    pairs = [pair(n, "edema") for n in range(6)] + [pair(n, "clear lungs") for n in range(6, 12)]
    write_pairs(tmp_path / "d.parquet", pairs)
    files = {"d": {"train": tmp_path / "d.parquet", "val": tmp_path / "d.parquet"}}

    class Killed(Exception):
        pass

    def kill(step: int, _values: object) -> None:
        if step >= 40:
            raise Killed

    def inputs(name: str, on_log) -> TrainInputs:
        order = TrainingOrder({"d": 6}, 0.5)
        return TrainInputs(files, ("d",), {}, 3, tmp_path / name / "work", tmp_path / name / "out", on_log, order=order)

    tiny.train(inputs("whole", lambda *_: None))
    with pytest.raises(Killed):
        tiny.train(inputs("cut", kill))
    tiny.train(inputs("cut", lambda *_: None))
    whole, cut = (tmp_path / name / "out" / "model.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
