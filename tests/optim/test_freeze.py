"""Freezing: which tensors, from which epoch."""

import pytest
import torch
from torch import nn

from project.errors import UserError
from project.nets import ConvNet, ResNet, TorchvisionModel
from project.optim import Freeze
from project.optim.freeze import Freezing


def resnet() -> nn.Module:
    return ResNet(3, 4, 16, depths=[2, 2], width=4)  # layers: stem, stages.0.0 to stages.1.1, head


def starts(freeze: Freeze, net: nn.Module) -> dict[str, set[int | None]]:
    """First two parts of a tensor's name -> when it trains."""
    found: dict[str, set[int | None]] = {}
    for name, start in freeze.plan(net).items():
        found.setdefault(".".join(name.split(".")[:2]), set()).add(start)
    return found


def test_all_but_the_head_and_with_buffers() -> None:
    net = resnet()
    everything = {*dict(net.named_parameters()), *dict(net.named_buffers())}
    plan = Freeze().plan(net)
    assert set(plan) == {name for name in everything if not name.startswith("head.")} and set(plan.values()) == {None}
    assert any(name.endswith("num_batches_tracked") for name in plan)


def test_until_an_epoch_and_stage_by_stage() -> None:
    assert set(Freeze(until=3).plan(resnet()).values()) == {3}
    assert starts(Freeze(until=1, every=2), resnet()) == {"stages.1": {1}, "stages.0": {3}, "stem.0": {5}}
    stages = starts(Freeze(until=2, every=1), TorchvisionModel(3, 4, 32, "resnet18"))
    expected = {f"backbone.layer{stage}": {6 - stage} for stage in range(1, 5)}
    assert stages == {**expected, "backbone.conv1": {6}, "backbone.bn1": {6}}


def test_a_pattern_chooses_layers() -> None:
    assert set(starts(Freeze(layers="^stem"), resnet())) == {"stem.0"}
    assert set(starts(Freeze(layers=r"^(stem|stages\.0)"), resnet())) == {"stem.0", "stages.0"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 1}, "needs until"),
        ({"layers": "nothing"}, "'nothing' applies to none of stem, stages.0.0"),
        ({"layers": "."}, "would freeze everything"),
        ({"layers": "("}, "not a regular expression"),
    ],
)
def test_bad_input(arguments, words) -> None:
    with pytest.raises(UserError) as caught:
        Freeze(**arguments).plan(resnet())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_that_is_all_head() -> None:
    with pytest.raises(UserError, match=r"would freeze nothing; the layers are 1$"):
        Freeze().plan(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))


def test_ours_has_a_head() -> None:
    assert not any(name.startswith("head") for name in Freeze().plan(ConvNet(3, 4, 16, channels=[4])))


def test_freezing_follows_the_epoch() -> None:
    net = resnet()
    parameters = dict(net.named_parameters())
    freezing = Freezing(net, Freeze(until=1, every=2))
    assert all(parameter.requires_grad for parameter in parameters.values())  # until DDP has wrapped the network
    for epoch in (0, 1, 3, 5):
        freezing.apply(epoch)
        net.train()
        freezing.hold()
        frozen = freezing.frozen(epoch)
        assert {name for name, parameter in parameters.items() if not parameter.requires_grad} == frozen & set(
            parameters
        )
        before = {name: tensor.clone() for name, tensor in net.named_buffers()}
        net(torch.rand(2, 3, 16, 16))
        moved = {name for name, tensor in net.named_buffers() if not torch.equal(tensor, before[name])}
        assert moved == set(before) - frozen
    assert not freezing.frozen(5)


def test_frozen_for_good_needs_no_gradient_from_the_start() -> None:
    net = resnet()
    freezing = Freezing(net, Freeze())
    assert {name for name, p in net.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert freezing.frozen(10**6) == set(freezing.trains_from)


def test_nothing_to_freeze() -> None:
    net = resnet()
    freezing = Freezing(net, None)
    freezing.apply(0)
    net.train()
    freezing.hold()
    assert not freezing.trains_from and all(module.training for module in net.modules())
