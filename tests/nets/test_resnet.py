"""Against torchvision's ResNets: parameter counts, and outputs after copying the weights in order."""

import pytest
import torch
import torchvision
from torch import nn

from project.nets import ResNet

RESNET18 = {"depths": [2, 2, 2, 2], "block": "basic", "stem": "imagenet"}
RESNET50 = {"depths": [3, 4, 6, 3], "block": "bottleneck", "stem": "imagenet"}


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"), [("resnet18", RESNET18, 11_689_512), ("resnet50", RESNET50, 25_557_032)]
)
def test_equals_torchvision(name, arguments, parameters):
    torch.manual_seed(0)
    net = ResNet(3, 1000, 96, **arguments).eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    reference = torchvision.models.get_model(name).eval()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics and scales of a trained network, not 0 and 1
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.3, 0.9)
    ours, theirs = net.state_dict(), reference.state_dict()
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]
    net.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(net(x), reference(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stem", "image_size", "stem_size"),
    [("auto", 8, 8), ("auto", 64, 64), ("auto", 65, 17), ("auto", 224, 56), ("cifar", 224, 224), ("imagenet", 32, 8)],
)
def test_stem_follows_the_image_size(stem, image_size, stem_size):
    net = ResNet(1, 10, image_size, depths=[1], width=2, stem=stem)
    assert net.stem(torch.zeros(1, 1, image_size, image_size)).shape == (1, 2, stem_size, stem_size)


@pytest.mark.parametrize(("block", "expansion"), [("basic", 1), ("bottleneck", 4)])
def test_stages_double_the_width_and_halve_the_size(block, expansion):
    net = ResNet(3, 10, 32, depths=[1, 2, 1], width=8, block=block)
    x = net.stem(torch.zeros(2, 3, 32, 32))
    for i, stage in enumerate(net.stages):
        x = stage(x)
        assert x.shape == (2, 8 * 2**i * expansion, 32 // 2**i, 32 // 2**i)
    assert net.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 32 * expansion)
    assert [len(stage) for stage in net.stages] == [1, 2, 1]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_zero_init_makes_blocks_start_as_the_identity(block):
    torch.manual_seed(0)
    x = torch.randn(2, 8 if block == "basic" else 32, 8, 8).relu()
    for zero in (True, False):
        stage = ResNet(3, 10, 32, depths=[2], width=8, block=block, zero_init_residual=zero).stages[0]
        assert torch.equal(stage[1](x), x) is zero


def test_forward_is_head_of_features_and_dropout_acts():
    torch.manual_seed(0)
    net = ResNet(3, 5, 16, depths=[1], width=32, dropout=0.5)
    x = torch.randn(4, 3, 16, 16)
    assert 0.2 < (net.forward_features(x) == 0).float().mean() < 0.8
    net.eval()
    torch.testing.assert_close(net(x), net.head(net.forward_features(x)))
    assert not (net.forward_features(x) == 0).any()


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"depths": []}, "depths"),
        ({"depths": [2, 0]}, "depths"),
        ({"width": 0}, "width"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_bad_values_are_refused_in_one_line(arguments, key):
    with pytest.raises(ValueError, match=f"^{key}[^\n]*$"):
        ResNet(**({"in_channels": 3, "num_classes": 10, "image_size": 32} | arguments))
