"""Outputs of layers against a pass by hand; hooks that never stay; dead units that are known."""

import pytest
import torch
from torch import nn

from project.extras.look.watch import evaluating, first_convolution, layer_spread, map_layers, rectifiers, watch


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
    assert list(outputs) == ["0", "1", "2", "4"]  # Flatten computes nothing
    assert torch.equal(outputs["0"], conv) and torch.equal(outputs["1"], norm) and (norm < 0).any()
    assert torch.equal(outputs["2"], norm.clamp(min=0)) and not any(output.requires_grad for output in outputs.values())


def test_inputs_of_the_network_and_of_a_layer() -> None:
    net, images = small(), torch.randn(2, 1, 4, 4)
    with watch(net, ["", "4"], inputs=True) as received:
        net(images)
    assert torch.equal(received[""], images) and received["4"].shape == (2, 64) and not hooks(net)


def test_hooks_are_gone_when_the_pass_or_a_name_fails() -> None:
    net = small()
    with pytest.raises(RuntimeError), watch(net):
        net(torch.randn(2, 7, 4, 4))
    assert not hooks(net)
    with pytest.raises(AttributeError, match="conv"), watch(net, ["0", "conv"]):
        pass
    assert not hooks(net)
    with watch(net, ["2"]) as outputs:
        assert hooks(net) == 1
        net(torch.randn(2, 1, 4, 4))
    assert list(outputs) == ["2"] and not hooks(net)


def test_what_is_not_a_tensor_is_left_out() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    net = nn.ModuleDict({"pair": Pair(), "unused": nn.ReLU()})
    with watch(net) as outputs:
        net["pair"](torch.ones(2))
    assert not outputs


def test_layers_with_feature_maps_are_chosen_evenly_relus_first() -> None:
    outputs = {f"conv{i}": torch.ones(1, 2, 3, 3) for i in range(9)} | {"head": torch.ones(1, 2, 1, 1)}
    assert map_layers(outputs, set(), 4) == ["conv0", "conv3", "conv6"]
    assert map_layers(outputs, {"conv1", "conv2", "head"}, 4) == ["conv1", "conv2"]
    assert map_layers({}, set(), 4) == []


def test_spread_and_dead_units_are_those_made() -> None:
    output = torch.rand(6, 4, 3, 3) + 0.1
    output[:, 1] = 0  # dead
    output[:5, 2] = 0  # alive for one image
    one, other = layer_spread({"relu": output, "conv": output}, {"relu"})
    assert (one.name, one.dead, other.dead) == ("relu", 0.25, None)
    assert one.mean == pytest.approx(output.numpy().mean(), rel=1e-5)
    assert one.std == pytest.approx(output.numpy().std(), rel=1e-5)
    (flat,) = layer_spread({"relu": torch.tensor([[0.0, 1.0], [0.0, 0.0]])}, {"relu"})
    assert flat.dead == 0.5


def test_rectifiers_and_first_convolution() -> None:
    net = small()
    assert rectifiers(net) == {"2"} and first_convolution(net) is net[0]
    assert first_convolution(nn.Linear(2, 2)) is None


def test_eval_mode_and_buffers_are_given_back() -> None:
    net = small().train()
    net[1].training = False  # a frozen norm
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with evaluating(net):
        assert not any(layer.training for layer in net.modules())
        net[1].running_mean += 1
    with pytest.raises(RuntimeError), evaluating(net):
        net(torch.zeros(1, 7, 4, 4))
    assert [layer.training for layer in net.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
