import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medim.baselines.weight_files import fill, first_names, read_weights, under


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.words.weight


WEIGHTS = {"words.weight": torch.arange(15.0).view(5, 3)}


def test_a_tied_weight_has_one_first_name_and_one_name_fills_it():
    module = Tied()
    assert first_names(module) == {"words.weight": "words.weight", "head.weight": "words.weight"}
    for name in ("words.weight", "head.weight"):
        nn.init.zeros_(module.words.weight)
        assert fill(module, {name: WEIGHTS["words.weight"]}, "here") == 1
        assert torch.equal(module.head.weight, WEIGHTS["words.weight"])


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"file\.pth does not fit .*words\.weight is missing.*other has no place"):
        fill(Tied(), {"other": torch.zeros(1)}, "file.pth")
    with pytest.raises(ValueError, match=r"words\.weight is \(5, 4\), wanted \(5, 3\)"):
        fill(Tied(), {"words.weight": torch.zeros(5, 4)}, "file.pth")


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_pickles_of_training_scripts(tmp_path, wrapper):
    state = {f"module.{name}": value for name, value in WEIGHTS.items()}
    whole = state if wrapper is None else {wrapper: state, "epoch": 3, "best": np.float64(0.5)}
    torch.save(whole, tmp_path / "a.pth")
    assert torch.equal(read_weights(tmp_path / "a.pth")["words.weight"], WEIGHTS["words.weight"])


def test_folders_of_shards(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.ones(2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    torch.save({"c": torch.ones(2)}, tmp_path / "training_args.bin")
    assert set(read_weights(tmp_path)) == {"a", "b"}
    save_file({"d": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(read_weights(tmp_path)) == {"d"}


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.pth is missing"):
        read_weights(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="neither"):
        read_weights(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'\.npz'"):
        read_weights(tmp_path / "a.npz")
    torch.save({"epoch": 3}, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"no tensors by name, but \['epoch'\]"):
        read_weights(tmp_path / "b.pt")


def test_under_a_prefix():
    assert under({"a.b": 1, "a.c": 2, "b.a.d": 3}, "a.") == {"b": 1, "c": 2}
