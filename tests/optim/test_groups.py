"""Parameter groups: every trainable parameter in exactly one of them."""

from collections import Counter

import pytest
import torch
from torch import nn

from project.nets import ConvNet
from project.optim import param_groups


def net() -> nn.Module:
    return ConvNet(3, 5, 16, channels=[4, 8])


def test_every_parameter_is_in_one_group_with_a_name_and_a_rate() -> None:
    some = net()
    groups = param_groups(some, 0.1)
    times = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert times == Counter(id(parameter) for parameter in some.parameters())
    assert [(group["name"], group["lr"]) for group in groups] == [("all", 0.1)]


def test_frozen_parameters_are_left_out() -> None:
    some = net()
    some.stages.requires_grad_(False)
    (group,) = param_groups(some, 0.1)
    assert {id(p) for p in group["params"]} == {id(p) for p in some.head.parameters()}


def test_a_shared_parameter_comes_once() -> None:
    some = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    some[1].weight = some[0].weight
    assert sum(len(group["params"]) for group in param_groups(some, 0.1)) == 3  # one weight, two biases


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimizers_take_them_and_keep_their_names(kind) -> None:
    optimizer = kind(param_groups(net(), 0.25), 0.1)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("all", 0.25)]
