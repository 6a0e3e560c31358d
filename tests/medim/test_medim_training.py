"""Training: token files, balance, exact repetition and resume, validation with fixed masks."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_medim as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from medim.backbones.code_refiner import RefinerSettings
from medim.medim_training import (
    TASK_STATES,
    MeDiMTrainee,
    TokenData,
    balanced_batches,
    balanced_rows,
    build_medim,
    nats_per_token,
    read_tokens,
    train_medim,
    validation_nelbo,
)
from medim.model import load_medim
from medim.pretrained import Beginning
from medim.training import latest_checkpoint


def train(folder: Path, out: str, on_log: Any = lambda *_: None, **changes: Any) -> tuple[list[float], bytes]:
    """Train in folder/work; the losses of this process and the weights' bytes."""
    losses: list[float] = []

    def log(step: int, values: Mapping[str, float]) -> None:
        if "medim/loss" in values:
            losses.append(values["medim/loss"])
        on_log(step, values)

    train_medim(
        tiny.data(folder / "tokens"), tiny.settings(), replace(tiny.OPTIM, **changes), seed=7,
        work=folder / f"work-{out}", out=folder / out, on_log=log, beginning=Beginning(), device=torch.device("cpu"),
    )  # fmt: skip
    return losses, (folder / out / "model.safetensors").read_bytes()


def test_ten_steps_are_the_same_twice_and_after_a_kill(tmp_path):
    losses, weights = train(tmp_path, "first")
    assert len(losses) == 10
    assert train(tmp_path, "second") == (losses, weights)

    def kill(step: int, _values: Mapping[str, float]) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "third", kill)
    assert latest_checkpoint(tmp_path / "work-third").name == "step_000000004.pt"
    assert train(tmp_path, "third") == (losses[4:], weights)


def test_logs_name_modalities_and_tasks(tmp_path):
    seen: set[str] = set()
    train(tmp_path, "out", lambda _step, values: seen.update(values), steps=1)
    assert {"medim/loss", "nelbo_text", "nelbo_image", "lr"} <= seen
    assert {f"val/a/{task}" for task in TASK_STATES} <= seen


def test_it_learns(tmp_path):
    data = tiny.data(tmp_path / "tokens")
    before = validation_nelbo(build_medim(data, tiny.settings(), 7, Beginning()), data.train, tiny.settings(), 4)
    train_medim(
        data, tiny.settings(), replace(tiny.OPTIM, steps=40, lr=1e-2, ema=0.0), seed=7, work=tmp_path / "work",
        out=tmp_path / "out", on_log=lambda *_: None, beginning=Beginning(), device=torch.device("cpu"),
    )  # fmt: skip
    after = validation_nelbo(load_medim(tmp_path / "out"), data.train, tiny.settings(), 4)
    assert after["b/image_to_report"] < 0.6 * before["b/image_to_report"]


def test_the_opening_asks_for_the_answer_from_the_condition_alone(tmp_path):
    """Two steps have the objective of the opening, those after them that of the rest."""
    data = tiny.data(tmp_path / "tokens")
    settings = replace(tiny.settings(), opening=replace(tiny.OPENING, steps=2))
    trainee = MeDiMTrainee(build_medim(data, settings, 7, Beginning()), settings)
    batch = data.train["a"].batch(np.arange(2))

    def loss(step, objective):
        got, _ = trainee.loss("medim", batch, step, torch.Generator().manual_seed(0))
        wanted = trainee.model.loss(batch, objective, torch.Generator().manual_seed(0)).loss
        return float(got.detach()), float(wanted.detach())

    opening = replace(
        tiny.LOSS, states={"report_given_picture": 1.0}, all_masked={"report_given_picture": 1.0}, length_known=1.0
    )
    for step, objective in ((0, opening), (1, opening), (2, tiny.LOSS), (9, tiny.LOSS)):
        got, wanted = loss(step, objective)
        assert got == wanted
    assert loss(1, tiny.LOSS)[0] != loss(2, tiny.LOSS)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"states": {"joint": 0.5}}, "sum to 1"),
     ({"length_known": 2.0}, "length_known must lie in"), ({"all_masked": {"a": 1.0}}, "all_masked")],
)  # fmt: skip
def test_a_wrong_opening_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny.settings(), opening=replace(tiny.OPENING, **changes))


def test_samples_that_are_masked_whole_need_a_schedule_that_weighs_them():
    loss = replace(tiny.LOSS, all_masked={"report_given_picture": 0.3})
    with pytest.raises(ValueError, match="noise cosine gives samples that are masked whole the weight 0"):
        replace(tiny.settings(), noise="cosine", loss=loss)
    with pytest.raises(ValueError, match="noise cosine"):
        replace(tiny.settings(), noise="cosine", opening=replace(tiny.OPENING, steps=2))
    assert replace(tiny.settings(), noise="cosine").noise == "cosine"
    assert replace(tiny.settings(), noise="cubic", loss=loss).noise == "cubic"


@pytest.mark.parametrize(("steps", "fits"), [(0, True), (9, True), (10, False), (-1, False)])
def test_the_opening_ends_before_the_training(steps, fits):
    opening = replace(tiny.OPENING, steps=steps)
    if fits:
        opening.check(10)
    else:
        with pytest.raises(ValueError, match=f"opening.steps must lie between .* 10, got {steps}"):
            opening.check(10)


@pytest.mark.parametrize("rows", ["codebook", "drawn"])
def test_the_refiner_s_codes_start_like_the_decoder_s(tmp_path, rows):
    """From the codebook where the settings say so, also behind a prior that brings the decoder's."""
    data = tiny.data(tmp_path / "tokens")
    backbone = replace(tiny.BACKBONE, code_refiner=RefinerSettings(8, 1), code_rows=rows)
    built = build_medim(data, tiny.settings(backbone), 7, Beginning()).backbone.refiner.embed.weight[:-1].detach()
    torch.manual_seed(0)
    near = torch.corrcoef(torch.stack([torch.pdist(data.codebook), torch.pdist(built)]))[0, 1]
    assert (near > 0.5) == (rows == "codebook")


def test_validation_is_the_same_whenever_it_is_asked(tmp_path):
    data = tiny.data(tmp_path / "tokens")
    model = build_medim(data, tiny.settings(), 7, Beginning()).eval()
    values = [validation_nelbo(model, data.val, tiny.settings(), 2) for _ in range(2)]
    torch.rand(3)
    assert values[0] == values[1] == validation_nelbo(model, data.val, tiny.settings(), 2)
    alone = ("report_alone", "picture_alone", "own_picture_saves", "own_report_saves")
    assert values[0].keys() == {f"a/{task}" for task in (*TASK_STATES, *alone)}


def test_validation_shows_whether_the_condition_is_used(tmp_path):
    """Report i and picture i come from the same code here, so that a network which looks knows the report."""
    data = tiny.data(tmp_path / "tokens")
    train_medim(
        data, tiny.settings(), replace(tiny.OPTIM, steps=60, lr=1e-2, ema=0.0), seed=7, work=tmp_path / "work",
        out=tmp_path / "out", on_log=lambda *_: None, beginning=Beginning(), device=torch.device("cpu"),
    )  # fmt: skip
    after = validation_nelbo(load_medim(tmp_path / "out"), data.train, tiny.settings(), 4)
    assert after["b/image_to_report"] < after["b/report_alone"]
    assert after["b/own_picture_saves"] > 0.3  # nats; all three pairs differ


def test_the_condition_of_another_pair_is_that_of_one_half_the_split_away(tmp_path):
    """One pair has no other; where both have the same picture the own one saves nothing."""
    data = tiny.data(tmp_path / "tokens")
    model, one = build_medim(data, tiny.settings(), 7, Beginning()).eval(), tiny.tokens(1)
    saved = validation_nelbo(model, {"a": one}, tiny.settings(), 4)
    assert not {"a/own_picture_saves", "a/own_report_saves"} & saved.keys()
    four = replace(tiny.tokens(4), image=np.tile(tiny.tokens(2).image, (2, 1)))  # 0 and 2, 1 and 3 look alike
    saved = validation_nelbo(model, {"a": four}, tiny.settings(), 1)
    assert saved["a/own_picture_saves"] == 0 != saved["a/own_report_saves"]


def test_nats_per_token_is_a_mean_over_tokens(tmp_path):
    data = tiny.data(tmp_path / "tokens")
    model = build_medim(data, tiny.settings(), 7, Beginning())
    loss = replace(tiny.LOSS, states={"joint": 1.0}, prompt_keep=0.0, length_known=0.0)
    part = model.loss(data.val["a"].batch(np.arange(2)), loss, torch.Generator().manual_seed(0))
    nats = float(part.text.sum() + part.image.sum())
    assert nats_per_token([part, part]) == pytest.approx(nats / (2 * (20 + 9)))


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 5))
def test_every_dataset_has_its_share_and_every_pass_all_rows(sizes, seed):
    num = len(sizes) * int(np.lcm.reduce(sizes))
    rows = balanced_rows(sizes, range(num), seed)
    for size, mine in zip(sizes, rows, strict=True):
        assert len(mine) == num // len(sizes)
        for start in range(0, len(mine), size):
            assert sorted(mine[start : start + size]) == list(range(size))


def test_batches_are_a_function_of_step_and_part(tmp_path):
    files = tiny.data(tmp_path).train
    one, other = (balanced_batches(files, tiny.OPTIM, 3) for _ in range(2))
    later = one(5, 1)
    assert torch.equal(later.text, other(5, 1).text)
    whole = balanced_batches(files, replace(tiny.OPTIM, accumulate=1), 3)(5, 0)
    parts = torch.cat([other(5, 0).image, other(5, 1).image])
    assert sorted(whole.image.tolist()) == sorted(parts.tolist())
    with pytest.raises(ValueError, match="batch_size 4 must be a multiple of accumulate 3"):
        balanced_batches(files, replace(tiny.OPTIM, accumulate=3), 3)


def test_a_token_file_is_read_as_it_was_written(tmp_path):
    tokens = tiny.tokens(5)
    table = pa.table(
        {
            "pair_id": list(tokens.pair_ids),
            "text": pa.array(tokens.text.tolist(), pa.list_(pa.int32())),
            "image": pa.array(tokens.image.tolist(), pa.list_(pa.int32())),
            "prompt_tokens": pa.array(tokens.prompt_tokens, pa.int32()),
            "text_tokens": pa.array(tokens.text_tokens, pa.int32()),
        }
    )
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=2)
    for limit in (None, 3):
        read = read_tokens(tmp_path / "train.parquet", limit)
        assert read.pair_ids == tokens.pair_ids[:limit]
        for name in ("text", "image", "prompt_tokens", "text_tokens"):
            np.testing.assert_array_equal(getattr(read, name), getattr(tokens, name)[:limit])
    with pytest.raises(FileNotFoundError, match="dvc repro tokenize_pairs"):
        read_tokens(tmp_path / "val.parquet")


def test_files_of_different_lengths_are_refused(tmp_path):
    good = tiny.data(tmp_path)
    short = replace(tiny.tokens(), image=tiny.tokens().image[:, :4])
    with pytest.raises(ValueError, match="token files of one length"):
        TokenData({"a": tiny.tokens(), "b": short}, {}, good.tokenizer, good.codebook).layout()


def test_times_are_stratified_over_all_parts_of_a_step(tmp_path):
    data = tiny.data(tmp_path / "tokens")
    model = build_medim(data, tiny.settings(), 7, Beginning())
    seen = []

    def remember(_module, inputs):
        seen.append(inputs[1])

    model.backbone.register_forward_pre_hook(remember)
    batches = balanced_batches(data.train, replace(tiny.OPTIM, batch_size=8, accumulate=4), 0)
    for part in range(4):
        model.loss(batches(0, part), replace(tiny.LOSS, sampling_eps=0.0), torch.Generator().manual_seed(part))
    assert torch.equal((torch.cat(seen) * 8).long().sort().values, torch.arange(8))
