"""Freezing: which tensors, from which epoch."""

import pytest
import torch
from conftest import slow_but
from torch import nn
from torchvision.ops import StochasticDepth

from project.errors import UserError
from project.nets import ConvNet, ResNet, TimmModel, TorchvisionModel
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


def held(net: nn.Module, rule: Freeze, epoch: int = 0) -> nn.Module:
    """The network as it trains in an epoch, every dropout and stochastic depth at one half."""
    for module in net.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.5
    freezing = Freezing(net, rule)
    freezing.apply(epoch)
    net.train()
    freezing.hold()
    return net


def passes(net: nn.Module, of: str, images: torch.Tensor) -> list[torch.Tensor]:
    """What a part of the network puts out, for the same images twice."""
    found: list[torch.Tensor] = []
    hook = net.get_submodule(of).register_forward_hook(lambda module, given, output: found.append(output))
    with torch.no_grad():
        for _ in range(2):
            net(images)
    hook.remove()
    return found


DROPPED = {  # a network -> its dropout right before the head
    "efficientnet_b0": "backbone.classifier.0",
    "swin_t": None,
    "mobilenet_v3_small": "backbone.classifier.2",
    "vgg11": "backbone.classifier.5",
    "vit_b_32": None,
    "densenet121": None,
}


@pytest.mark.parametrize("name", slow_but(DROPPED, "efficientnet_b0", "swin_t"))
def test_a_frozen_network_has_one_set_of_features(name) -> None:
    """Those of eval mode, and dropout before the head alone changes them: to nothing or the double."""
    net, images = held(TorchvisionModel(3, 4, 32, name), Freeze()), torch.rand(2, 3, 32, 32)
    one, other = passes(net, "backbone", images)
    with torch.no_grad():
        plain = net.eval().backbone(images)
    if DROPPED[name] is None:
        assert torch.equal(one, other) and torch.equal(one, plain)
    else:
        for features in (one, other):
            kept = features != 0
            torch.testing.assert_close(features, 2 * plain * kept)
            assert 0.2 < kept.float().mean() / (plain != 0).float().mean() < 0.8
        assert not torch.equal(one, other)
    trained = {path for path, module in held(net, Freeze()).named_modules() if module.training and len(path) > 8}
    norms = {path for path in trained if isinstance(net.get_submodule(path), nn.BatchNorm2d | nn.LayerNorm)}
    drawing = {path for path in trained if isinstance(net.get_submodule(path), nn.Dropout | StochasticDepth)}
    assert not norms and drawing == ({DROPPED[name]} - {None})


def test_the_trained_part_keeps_its_stochastic_depth() -> None:
    net = held(TorchvisionModel(3, 4, 32, "efficientnet_b0"), Freeze(layers=r"features\.[0-4]\b|features\.5\.0"))
    images = torch.rand(2, 3, 32, 32)
    depth = {path: part.training for path, part in net.named_modules() if isinstance(part, StochasticDepth)}
    frozen = tuple(f"backbone.features.{place}." for place in ("0", "1", "2", "3", "4", "5.0"))
    assert depth == {path: not path.startswith(frozen) for path in depth} and {True, False} == set(depth.values())
    assert torch.equal(*passes(net, "backbone.features.5.0", images))
    assert not torch.equal(*passes(net, "backbone.features.5", images))


def test_what_is_unfrozen_later_draws_again() -> None:
    net, images = TorchvisionModel(3, 4, 32, "swin_t"), torch.rand(2, 3, 32, 32)
    assert torch.equal(*passes(held(net, Freeze(until=1, every=1), 0), "backbone", images))
    net = held(net, Freeze(until=1, every=1), 1)  # its last stage trains
    assert torch.equal(*passes(net, "backbone.features.6", images))
    assert not torch.equal(*passes(net, "backbone.features.7", images))


def test_dropout_goes_with_the_layer_before_it_or_with_the_head() -> None:
    def alive(pattern: str) -> set[str]:
        with torch.device("meta"):
            net = held(TorchvisionModel(3, 4, 32, "vgg11"), Freeze(layers=pattern))
        return {path for path, part in net.named_modules() if isinstance(part, nn.Dropout) and part.training}

    assert alive("features") == {"backbone.classifier.2", "backbone.classifier.5"}
    assert alive(r"features|classifier\.0") == {"backbone.classifier.5"}
    assert alive("backbone") == {"backbone.classifier.5"}


TIMM = ["mobilenetv3_small_050", "resnet18", "vit_tiny_patch16_224", "convnext_atto"]


@pytest.mark.parametrize("name", slow_but(TIMM, TIMM[0]))
def test_timms_dropout_before_the_head_is_alive(name) -> None:
    """In some networks a module, in others a line of the backbone's own forward pass."""
    pytest.importorskip("timm")
    net, images = TimmModel(3, 4, 224, name, drop_rate=0.5, drop_path_rate=0.5), torch.rand(2, 3, 224, 224)
    one, other = passes(held(net, Freeze()), "backbone", images)
    with torch.no_grad():
        plain = net.eval().backbone(images)
    assert not torch.equal(one, other)
    for features in (one, other):
        torch.testing.assert_close(features, 2 * plain * (features != 0))
