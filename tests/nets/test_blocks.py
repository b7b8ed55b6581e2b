"""Initialisation against the papers' formulas, written out here; the block against plain torch modules."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from project.nets import ConvNet, ResNet, TorchvisionModel
from project.nets.blocks import ConvNormAct, initialize

SCHEMES = ["xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform"]


def variance(scheme: str, fan_in: int, fan_out: int) -> float:
    """Glorot and Bengio 2010, equation 12; He et al. 2015, equation 14."""
    return 2 / (fan_in + fan_out) if scheme.startswith("xavier") else 2 / fan_out


def test_block_is_conv_norm_relu():
    torch.manual_seed(0)
    block = ConvNormAct(3, 8, kernel_size=5, stride=2).eval()
    block.norm.running_mean.uniform_()
    block.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 11, 11)
    y = nn.functional.conv2d(x, block.conv.weight, stride=2, padding=2)
    mean, var = (stat[:, None, None] for stat in (block.norm.running_mean, block.norm.running_var))
    torch.testing.assert_close(block(x), ((y - mean) / (var + 1e-5).sqrt()).clamp(min=0))
    assert set(block.state_dict()) >= {"conv.weight", "norm.weight", "norm.bias"}
    assert "conv.bias" not in block.state_dict()


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_keeps_the_size_up_to_the_stride(kernel_size, dilation, stride):
    block = ConvNormAct(1, 2, kernel_size, stride, dilation)
    assert block(torch.randn(1, 1, 13, 13)).shape == (1, 2, math.ceil(13 / stride), math.ceil(13 / stride))
    if kernel_size == 3:
        assert block.conv.padding == (dilation, dilation)


def test_groups_and_act_take_effect():
    block = ConvNormAct(4, 8, groups=4, act=None)
    assert block.conv.weight.shape == (8, 1, 3, 3)
    assert not hasattr(block, "act")
    assert block(torch.randn(2, 4, 5, 5)).min() < 0


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"kernel_size": 4}, "kernel_size"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"stride": 0}, "stride"),
        ({"dilation": 0}, "dilation"),
    ],
)
def test_block_refuses(arguments, key):
    with pytest.raises(ValueError, match=f"^{key}: [^\n]*use [^\n]*$"):
        ConvNormAct(4, 8, **arguments)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_follow_the_papers(scheme):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(48, 96, 3), nn.Conv2d(64, 128, 3, groups=4), nn.Linear(300, 200), nn.Linear(200, 100))
    initialize(net, scheme)
    # (fan_in, fan_out) by hand; the grouped convolution connects 16 inputs with 32 outputs
    for layer, fans in zip(net, [(48 * 9, 96 * 9), (16 * 9, 32 * 9), (300, 200)], strict=False):
        expected = math.sqrt(variance(scheme, *fans))
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.02)
        assert layer.weight.mean().item() == pytest.approx(0, abs=expected / 40)
        largest = layer.weight.abs().max().item()
        if scheme.endswith("uniform"):  # a uniform's bound is sqrt(3) standard deviations
            assert 0.99 * math.sqrt(3) * expected < largest <= math.sqrt(3) * expected
        else:
            assert largest > 3 * expected
    assert net[3].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert all(not layer.bias.any() for layer in net)


def test_default_leaves_the_network_as_built():
    net = ConvNet(3, 10, 16)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    initialize(net, "default")
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_schemes_give_different_first_layers():
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    spread = []
    for scheme in ["default", "kaiming_normal", "xavier_normal"]:
        torch.manual_seed(0)
        net = ConvNet(3, 10, 16, channels=[4])
        initialize(net, scheme)
        spread.append(net.stages[0][0].conv(x).std().item())
    spread.sort()
    assert all(larger > 1.2 * smaller for smaller, larger in pairwise(spread)), spread
    # uniform and normal agree in spread, not in shape: only the normal one has weights beyond its uniform bound
    normal, uniform = ConvNet(3, 10, 16), ConvNet(3, 10, 16)
    initialize(normal, "kaiming_normal")
    initialize(uniform, "kaiming_uniform")
    largest = [net.stages[0][0].conv.weight.abs().max() for net in (normal, uniform)]
    assert largest[0] > 1.2 * largest[1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_norms_start_as_identity_unless_marked_zero(scheme):
    net = ResNet(3, 10, 16, depths=[1, 1], width=8)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.3)  # as if trained
    initialize(net, scheme)
    for block in (stage[0] for stage in net.stages):
        assert torch.equal(block.conv1.norm.weight, torch.ones_like(block.conv1.norm.weight))
        assert not block.conv2.norm.weight.any()
        assert not block.conv1.norm.bias.any() and not block.conv2.norm.bias.any()
    kept_open = ResNet(3, 10, 16, depths=[1, 1], width=8, zero_init_residual=False)
    initialize(kept_open, scheme)
    assert kept_open.stages[0][0].conv2.norm.weight.eq(1).all()


def test_the_head_of_a_library_network_is_found():
    torch.manual_seed(0)
    net = TorchvisionModel(3, 10, 32, "mobilenet_v3_small")  # depthwise convolutions, batch norms, two linear layers
    initialize(net, "kaiming_normal")
    assert net.head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert net.backbone.classifier[0].weight.std().item() == pytest.approx(math.sqrt(2 / 1024), rel=0.05)


def test_first_loss_is_near_log_classes():
    torch.manual_seed(0)
    net = ResNet(3, 10, 32, depths=[1, 1], width=16)
    initialize(net, "kaiming_normal")
    loss = nn.functional.cross_entropy(net(torch.randn(16, 3, 32, 32)), torch.arange(16) % 10)
    assert loss.item() == pytest.approx(math.log(10), abs=0.1)


def test_same_seed_same_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(ConvNet(1, 10, 8))
        initialize(nets[-1], "xavier_uniform")
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


CONVOLUTIONS = [(3, 8, 1), (8, 3, 1), (4, 4, 2), (4, 12, 4), (12, 4, 4), (6, 6, 6)]  # in, out, groups


@pytest.mark.parametrize(("given", "out", "groups"), CONVOLUTIONS)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_dirac_passes_the_first_inputs_on(given, out, groups, size):
    torch.manual_seed(0)
    drawn = nn.Sequential(nn.Conv2d(given, out, size, padding=size // 2, groups=groups), nn.Linear(7, 7))
    net = copy.deepcopy(drawn)
    initialize(net, "dirac")
    x = torch.randn(2, given, 7, 7)
    y = net[0](x) - net[0].bias[:, None, None]
    each, inputs, outputs = min(given, out) // groups, given // groups, out // groups
    for group in range(groups):
        first, start = group * outputs, group * inputs
        torch.testing.assert_close(y[:, first : first + each], x[:, start : start + each])
        rest = slice(first + each, first + outputs)
        assert torch.equal(net[0].weight[rest], drawn[0].weight[rest])
    assert torch.equal(net[0].bias, drawn[0].bias) and torch.equal(net[1].weight, drawn[1].weight)


def test_dirac_keeps_the_start_of_residual_blocks_and_of_published_networks():
    for net in (ResNet(3, 5, 32, depths=[1, 1]), TorchvisionModel(3, 5, 32, "mobilenet_v3_small")):
        norms = {n: m.weight.clone() for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
        initialize(net, "dirac")
        assert all(torch.equal(net.get_submodule(name).weight, weight) for name, weight in norms.items())
        conv = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
        middle = conv.weight.shape[-1] // 2
        assert torch.equal(conv.weight[:3, :, middle, middle], torch.eye(3))


def test_a_block_with_pooling_and_a_fixed_scale():
    torch.manual_seed(0)
    block = ConvNormAct(3, 4, act="silu", norm_momentum=0.25, norm_scale=False, pool=2)
    assert [name for name, _ in block.named_parameters()] == ["conv.weight", "norm.bias"]
    x = torch.randn(5, 3, 8, 8)
    y = nn.functional.max_pool2d(nn.functional.conv2d(x, block.conv.weight, padding=1), 2)
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    normal = (y - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    torch.testing.assert_close(block(x), normal * normal.sigmoid(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.norm.running_mean, 0.25 * mean)
    with pytest.raises(ValueError, match="pool"):
        ConvNormAct(3, 4, pool=0)
