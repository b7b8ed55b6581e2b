"""Shapes and parameter counts by hand arithmetic, sizes by brute force, and that each argument takes effect."""

import pytest
import torch
from torch import nn

from project.nets import ConvNet


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("in_channels", "image_size"), [(1, 8), (3, 32), (4, 45)])
def test_logits_and_features(in_channels, image_size):
    net = ConvNet(in_channels, 7, image_size).eval()
    x = torch.randn(2, in_channels, image_size, image_size)
    features = net.forward_features(x)
    assert features.shape == (2, 128)
    assert isinstance(net.head, nn.Linear) and isinstance(net.stages, nn.Sequential)
    torch.testing.assert_close(net(x), net.head(features))
    assert net(x).shape == (2, 7)


def test_parameters_by_hand():
    net = ConvNet(3, 10, 32, channels=[8, 16], convs_per_block=2, kernel_size=5)
    convs = 25 * (3 * 8 + 8 * 8 + 8 * 16 + 16 * 16)
    assert count(net) == convs + 2 * (8 + 8 + 16 + 16) + 16 * 10 + 10


def map_size(net: ConvNet, image_size: int) -> int:
    return net.stages(torch.zeros(1, 1, image_size, image_size)).shape[-1]


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({}, 8),
        ({"channels": [4]}, 16),
        ({"stride": 2}, 2),
        ({"pool_kernel": 1}, 32),
        ({"pool_kernel": 1, "pool_stride": 2}, 8),
        ({"pool_kernel": 3}, 3),  # 32 -> 10 -> 3
        ({"pool_kernel": 3, "pool_stride": 2}, 7),  # 32 -> 15 -> 7
        ({"pool_kernel": 2, "pool_stride": 1}, 30),
    ],
)
def test_strides_and_poolings_take_effect(arguments, size):
    assert map_size(ConvNet(1, 10, 32, **({"channels": [4, 4]} | arguments)), 32) == size


def test_pooling_and_dropout_take_effect():
    torch.manual_seed(0)
    x = torch.randn(4, 1, 8, 8)
    net = ConvNet(1, 10, 8, channels=[16], pooling="max", dropout=0.5).eval()
    torch.testing.assert_close(net.forward_features(x), net.stages(x).amax((2, 3)))
    average = ConvNet(1, 10, 8, channels=[16], pooling="avg").eval()
    torch.testing.assert_close(average.forward_features(x), average.stages(x).mean((2, 3)))
    features = net.train().forward_features(x)
    assert 0.2 < (features == 0).float().mean() < 0.8
    assert not (ConvNet(1, 10, 8, channels=[16], pooling="max").forward_features(x) == 0).any()


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "pool_kernel", "pool_stride"), [(1, 2, None), (2, 2, 2), (1, 3, 2), (2, 2, 3), (2, 1, 1), (1, 1, 2)]
)
def test_smallest_image_is_the_smallest(blocks, stride, pool_kernel, pool_stride):
    options = {"channels": [2] * blocks, "stride": stride, "pool_kernel": pool_kernel, "pool_stride": pool_stride}
    reference = ConvNet(1, 2, 10_000, **options).eval()
    accepted = runs = 0
    for size in range(1, 90):
        try:
            ConvNet(1, 2, size, **options)
            accepted += 1
        except ValueError as error:
            assert str(error).startswith("image_size: ") and "\n" not in str(error)
        try:
            runs += map_size(reference, size) >= 1
        except RuntimeError:
            pass
    assert accepted == runs > 0


def test_too_small_an_image_says_how_to_fix():
    with pytest.raises(ValueError, match=r"^image_size: 8 must be 16 or more; or use fewer entries"):
        ConvNet(1, 10, 8, channels=[8, 8, 8, 8])


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"channels": []}, "channels"),
        ({"channels": [8, 0]}, "channels"),
        ({"convs_per_block": 0}, "convs_per_block"),
        ({"kernel_size": 4}, "kernel_size"),
        ({"kernel_size": -1}, "kernel_size"),
        ({"stride": 0}, "stride"),
        ({"pool_kernel": 0}, "pool_kernel"),
        ({"pool_stride": 0}, "pool_stride"),
        ({"dropout": -0.1}, "dropout"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_bad_values_are_refused_in_one_line(arguments, key):
    with pytest.raises(ValueError, match=f"^{key}[^\n]*$"):
        ConvNet(**({"in_channels": 1, "num_classes": 10, "image_size": 32} | arguments))


def test_learns_two_classes():
    torch.manual_seed(0)
    net = ConvNet(1, 2, 8, channels=[8, 16])
    x = torch.randn(64, 1, 8, 8)
    y = (x[:, 0, :, :4].mean((1, 2)) > x[:, 0, :, 4:].mean((1, 2))).long()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
