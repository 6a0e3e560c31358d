import pytest
import torch
from torch import nn

from medim.baselines.lora import LoraLinear, LoraSettings, add_lora, merge_lora, train_only

SETTINGS = LoraSettings(rank=3, alpha=6.0, dropout=0.5, targets=("*.q_proj", "last"))


def network():
    torch.manual_seed(0)
    block = nn.ModuleDict({"q_proj": nn.Linear(6, 8), "k_proj": nn.Linear(6, 8, bias=False)})
    return nn.ModuleDict({"block": block, "last": nn.Linear(8, 2, bias=False)})


def answer(net, x):
    return net["last"](net["block"]["q_proj"](x) * net["block"]["k_proj"](x))


def test_nothing_changes_before_the_first_step_and_merging_changes_nothing_after():
    net, x = network(), torch.randn(5, 6)
    before = answer(net, x)
    assert add_lora(net, SETTINGS) == 2
    assert not isinstance(net["block"]["k_proj"], LoraLinear)
    torch.testing.assert_close(answer(net.eval(), x), before)
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, LoraLinear):
                part.up.normal_()
    changed = answer(net, x)
    assert not torch.allclose(changed, before)
    weight = net["last"].weight + 6.0 / 3 * net["last"].up @ net["last"].down
    assert merge_lora(net) == 2
    torch.testing.assert_close(net["last"].weight, weight)
    torch.testing.assert_close(answer(net, x), changed)
    assert not any(isinstance(part, LoraLinear) for part in net.modules())


def test_the_formula_and_the_names():
    net = network()
    q = net["block"]["q_proj"]
    add_lora(net, SETTINGS)
    lora, x = net["block"]["q_proj"].eval(), torch.randn(4, 6)
    nn.init.normal_(lora.up)
    torch.testing.assert_close(lora(x), x @ q.weight.T + q.bias + 2.0 * x @ lora.down.T @ lora.up.T)
    assert {"block.q_proj.weight", "block.q_proj.bias", "block.q_proj.down", "block.q_proj.up"} < set(net.state_dict())
    torch.manual_seed(0)
    first = lora.train()(x)
    assert not torch.allclose(first, lora(x))  # dropout


def test_only_lora_learns_and_what_is_named():
    net = network()
    add_lora(net, SETTINGS)
    train_only(net, ["block.k_proj"])
    learning = {name for name, value in net.named_parameters() if value.requires_grad}
    low_rank = {"block.q_proj.down", "block.q_proj.up", "last.down", "last.up"}
    assert learning == {*low_rank, "block.k_proj.weight"}
    answer(net, torch.randn(5, 6)).sum().backward()
    assert net["last"].weight.grad is None and net["last"].up.grad is not None


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"'\*\.v_proj' matches no linear map"):
        add_lora(network(), LoraSettings(2, 1.0, 0.0, ("*.v_proj",)))
    with pytest.raises(ValueError, match="rank=0"):
        LoraSettings(0, 1.0, 0.0, ("*",))
