import math

import pytest

from gmcli.errors import ConfigError
from gmcli.train.optimizer import build_optimizer, learning_rate
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
    groups = build_optimizer(module, settings).param_groups
    names = {id(p): name for name, p in module.named_parameters()}
    found = {names[id(p)]: (g["factor"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "head.weight": (0.5, 0.1),
        "head.bias": (2.0, 0.0),
        "norm.weight": (1.0, 0.0),
        "norm.bias": (1.0, 0.0),
    }


def test_a_prefix_that_names_nothing_is_refused():
    with pytest.raises(ConfigError, match="'frozen', 'nose'"):
        build_optimizer(ToyModule(), toy_settings(lr_scale={"frozen": 1.0, "nose": 1.0}))
