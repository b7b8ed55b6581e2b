"""Freezing: which tensors, from which epoch."""

import pytest
from torch import nn

from project.errors import UserError
from project.nets import ConvNet, ResNet, TorchvisionModel
from project.optim import Freeze


def resnet() -> nn.Module:
    return ResNet(3, 4, 16, depths=[1, 2], width=4)  # layers: stem, stages.0.0, stages.1.0, stages.1.1, head


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
        ({"until": 0}, "until must be 1 or more"),
        ({"until": 1, "every": 0}, "every must be 1 or more"),
        ({"every": 1}, "needs until"),
        ({"layers": "nothing"}, "'nothing' matches no layer; the layers are stem, stages.0.0"),
        ({"layers": "."}, "would freeze everything"),
        ({"layers": "("}, "no regular expression"),
    ],
)
def test_bad_input(arguments, words) -> None:
    with pytest.raises(UserError) as caught:
        Freeze(**arguments).plan(resnet())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_that_is_all_head() -> None:
    with pytest.raises(UserError, match="nothing but its head"):
        Freeze().plan(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))


def test_ours_has_a_head() -> None:
    assert not any(name.startswith("head") for name in Freeze().plan(ConvNet(3, 4, 16, channels=[4])))
