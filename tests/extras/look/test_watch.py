"""Outputs of layers against a pass by hand; hooks that never stay; dead units that are known."""

import pytest
import torch
from torch import nn

from project.errors import UserError
from project.extras.look.watch import evaluating, first_convolution, layer_spread, rectifiers, watch


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)
    )


def hooks(net: nn.Module) -> int:
    return sum(
        len(layer._forward_hooks) + len(layer._backward_hooks) + len(layer._forward_pre_hooks)
        for layer in net.modules()
    )


def test_outputs_are_those_of_a_pass_by_hand_also_before_a_layer_in_place() -> None:
    net, images = small().eval(), torch.randn(5, 1, 4, 4)
    with watch(net) as outputs:
        net(torch.zeros(2, 1, 4, 4))
        net(images)  # the last call counts
    conv = net[0](images)
    norm = net[1](conv)
    assert list(outputs) == ["0", "1", "2", "3", "4"]
    assert torch.equal(outputs["0"], conv) and torch.equal(outputs["1"], norm) and (norm < 0).any()
    assert torch.equal(outputs["2"], norm.clamp(min=0)) and not any(output.requires_grad for output in outputs.values())


def test_only_the_layers_named() -> None:
    net = small()
    with watch(net, ["2"]) as outputs:
        net(torch.randn(2, 1, 4, 4))
    assert list(outputs) == ["2"] and not hooks(net)


def test_hooks_are_gone_when_the_pass_fails() -> None:
    net = small()
    with pytest.raises(RuntimeError), watch(net):
        net(torch.randn(2, 7, 4, 4))
    assert not hooks(net)
    with watch(net):
        assert hooks(net) == 5
    assert not hooks(net)


def test_a_layer_that_gives_several_tensors_or_none() -> None:
    class Two(nn.Module):
        def __init__(self, output: object) -> None:
            super().__init__()
            self.layer, self.output = nn.Identity(), output

        def forward(self, x: object) -> object:
            return self.layer(self.output)

    for output, expected in [((None, torch.ones(2)), 2), ({"a": torch.ones(3)}, 3), ("words", None)]:
        net = Two(output)
        with watch(net) as outputs:
            net(None)
        assert (len(outputs["layer"]) if outputs else None) == expected


def test_an_unknown_layer_names_the_near_ones() -> None:
    net = nn.ModuleDict({"stem": nn.Identity(), "stages": nn.Identity()})
    with pytest.raises(UserError, match=r"no layer 'stagse'; near: stages"), watch(net, ["stem", "stagse"]):
        pass
    with pytest.raises(UserError, match=r"no layer 'xyz'; some: stem, stages"), watch(net, ["xyz"]):
        pass
    assert not hooks(net)


def test_spread_and_dead_units_are_those_made() -> None:
    output = torch.rand(6, 4, 3, 3) + 0.1
    output[:, 1] = 0  # dead
    output[:5, 2] = 0  # alive for one image
    one, other = layer_spread({"relu": output, "conv": output}, {"relu"})
    assert (one.name, one.dead, other.dead) == ("relu", 0.25, None)
    assert one.mean == pytest.approx(output.numpy().mean(), rel=1e-5) and one.std == pytest.approx(
        output.numpy().std(), rel=1e-5
    )
    (flat,) = layer_spread({"relu": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}, {"relu"})
    assert flat.dead == 0.5


def test_rectifiers_and_first_convolution() -> None:
    net = small()
    assert rectifiers(net) == {"2"} and first_convolution(net) is net[0]
    assert first_convolution(nn.Linear(2, 2)) is None


def test_eval_mode_is_given_back_layer_by_layer() -> None:
    net = small().train()
    net[1].training = False  # a frozen norm
    with evaluating(net):
        assert not any(layer.training for layer in net.modules())
    with pytest.raises(RuntimeError), evaluating(net):
        net(torch.zeros(1, 7, 4, 4))
    assert [layer.training for layer in net.modules()] == [True, True, False, True, True, True]
