"""Against a reference written with torch's functions, hand-counted parameters, and map sizes for every image size."""

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, max_pool2d

from project.nets import ResNet9

SMALL = [4, 8, 8, 16]


def test_equals_plain_functions():
    torch.manual_seed(0)
    net = ResNet9(3, 10, 32, widths=SMALL)
    x = torch.randn(4, 3, 32, 32)
    convs = iter([p for p in net.parameters() if p.dim() == 4])

    def conv_norm_relu(x):
        return batch_norm(conv2d(x, next(convs), padding=1), None, None, training=True).relu()

    y = conv_norm_relu(x)
    y = max_pool2d(conv_norm_relu(y), 2)
    y = y + conv_norm_relu(conv_norm_relu(y))
    y = max_pool2d(conv_norm_relu(y), 2)
    y = max_pool2d(conv_norm_relu(y), 2)
    y = y + conv_norm_relu(conv_norm_relu(y))
    y = 0.125 * y.amax((2, 3)) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(x), y, rtol=1e-4, atol=1e-5)
    assert next(convs, None) is None


def test_parameters_by_hand():
    net = ResNet9(3, 10, 32)
    convs = 9 * (3 * 64 + 64 * 128 + 2 * 128 * 128 + 128 * 256 + 256 * 512 + 2 * 512 * 512)
    norms = 2 * (64 + 3 * 128 + 256 + 3 * 512)
    assert sum(p.numel() for p in net.parameters()) == convs + norms + 512 * 10 + 10 == 6_573_130


@pytest.mark.parametrize(
    ("image_size", "stride", "kernel"), [(8, 1, 3), (64, 1, 3), (65, 2, 3), (128, 2, 3), (224, 4, 7), (512, 8, 15)]
)
def test_stem_brings_large_images_to_64_pixels(image_size, stride, kernel):
    net = ResNet9(1, 10, image_size, widths=SMALL)
    assert net.stem.conv.kernel_size == (kernel, kernel)
    side = net.stem(torch.zeros(1, 1, image_size, image_size)).shape[-1]
    assert side == -(-image_size // stride) <= 64


@pytest.mark.parametrize("image_size", [8, 9, 28, 32, 65, 96, 224])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_and_features(image_size, in_channels):
    net = ResNet9(in_channels, 7, image_size, widths=SMALL).eval()
    x = torch.randn(2, in_channels, image_size, image_size)
    features = net.forward_features(x)
    assert features.shape == (2, 16)
    torch.testing.assert_close(net(x), net.head(features))
    assert net(x).shape == (2, 7)


def test_residual_stages_take_effect():
    for chosen in ([], [2], [1, 2, 3]):
        net = ResNet9(3, 10, 32, widths=SMALL, residual_stages=chosen)
        assert [i for i, stage in enumerate(net.stages, 1) if len(stage) == 3] == chosen


def test_scale_pooling_and_dropout_take_effect():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    net = ResNet9(3, 10, 16, widths=[8, 64], residual_stages=[], head_scale=0.5, pooling="avg").eval()
    torch.testing.assert_close(net.forward_features(x), 0.5 * net.stages(net.stem(x)).mean((2, 3)))
    net = ResNet9(3, 10, 16, widths=[8, 64], residual_stages=[], dropout=0.5)
    assert 0.2 < (net.forward_features(x) == 0).float().mean() < 0.8


def test_learns_in_channels_last():
    torch.manual_seed(0)
    net = ResNet9(3, 2, 8, widths=SMALL).to(memory_format=torch.channels_last)
    x = torch.randn(64, 3, 8, 8).to(memory_format=torch.channels_last)
    y = (x[:, 0, :, :4].mean((1, 2)) > x[:, 0, :, 4:].mean((1, 2))).long()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(60):
        loss = cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    maps = net.stages(net.stem(torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)))
    assert maps.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"widths": []}, "widths"),
        ({"widths": [64, 0]}, "widths"),
        ({"residual_stages": [0]}, "residual_stages"),
        ({"residual_stages": [4]}, "residual_stages"),
        ({"dropout": 1.5}, "dropout"),
        ({"image_size": 7}, "image_size"),
    ],
)
def test_bad_values_are_refused_in_one_line(arguments, key):
    with pytest.raises(ValueError, match=f"^{key}[^\n]*$"):
        ResNet9(**({"in_channels": 3, "num_classes": 10, "image_size": 32} | arguments))


def test_head_is_linear():
    net = ResNet9(3, 10, 32, widths=SMALL)
    assert isinstance(net.head, nn.Linear) and net.head.out_features == 10
