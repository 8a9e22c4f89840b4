import math

import pytest
import torch
from torch import nn

from gmcli.errors import ConfigError
from gmcli.train.optimizer import build_optimizers, learning_rate
from tests.train.toy import ToyModule, toy_settings


def test_linear_warms_up_and_decays():
    settings = toy_settings(steps=10, warmup_steps=4, lr=1.0)
    rates = [learning_rate(step, settings) for step in range(10)]
    assert rates == pytest.approx([1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_cosine_and_constant():
    cosine = toy_settings(steps=8, warmup_steps=0, lr=2.0, schedule="cosine")
    assert [learning_rate(s, cosine) for s in (0, 4)] == pytest.approx([2, 1])
    assert learning_rate(7, cosine) == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert learning_rate(7, toy_settings(steps=8, warmup_steps=0, lr=2.0, schedule="constant")) == 2


def test_groups_scale_by_the_longest_prefix_and_decay_matrices_only():
    settings = toy_settings(weight_decay=0.1, lr_scale={"head": 0.5, "head.bias": 2.0})
    module = ToyModule()
    (optimizer,) = build_optimizers(module, settings)
    groups = optimizer.param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)]: (g["factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "head.weight": (0.5, 0.1),
        "head.bias": (2.0, 0.0),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
    }


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), nn.Linear(6, 4, bias=False)])
        self.embed = nn.Embedding(3, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Block(), nn.Linear(4, 2)


def test_muon_steps_the_matrices_of_blocks_and_adamw_the_rest():
    net = Net()
    adamw, muon = build_optimizers(net, toy_settings(optimizer="muon", lr=0.1))
    assert isinstance(adamw, torch.optim.AdamW)
    assert isinstance(muon, torch.optim.Muon)
    names = {id(p): name for name, p in net.named_parameters()}
    assert {names[id(p)] for g in muon.param_groups for p in g["params"]} == {
        "body.layers.0.0.weight",
        "body.layers.1.weight",
    }
    found = [id(p) for o in (adamw, muon) for g in o.param_groups for p in g["params"]]
    assert sorted(found) == sorted(names)


def test_muons_step_is_as_long_as_adamws():
    """Moonlight's scale: the step's root mean square is 0.2 lr, about AdamW's, whatever the matrix's shape."""
    torch.manual_seed(0)
    net = Net()
    net.body.layers[0] = nn.Linear(64, 256)
    weight = net.body.layers[0].weight
    before = weight.detach().clone()
    _, muon = build_optimizers(net, toy_settings(optimizer="muon", lr=0.1))
    weight.grad = torch.randn_like(weight)
    muon.step()
    assert float((weight.detach() - before).pow(2).mean().sqrt()) == pytest.approx(0.02, rel=0.2)


def test_a_prefix_that_names_nothing_is_refused():
    with pytest.raises(ConfigError, match="'frozen', 'nose'"):
        build_optimizers(ToyModule(), toy_settings(lr_scale={"frozen": 1.0, "nose": 1.0}))
