"""Residual networks (He et al. 2015, arXiv:1512.03385) for any image size."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from project.nets.blocks import ConvNormAct, Network, check_positive, zero_init

CIFAR_STEM_UP_TO = 64  # pixels: the stem of He et al. section 4.2 keeps full resolution


class ResNet(Network):
    """ResNet: a stem, stages of residual blocks of which each doubles the channels and halves the size, a linear head.

    `depths: [2, 2, 2, 2]` with basic blocks is ResNet-18, `[3, 4, 6, 3]` with bottlenecks ResNet-50; with
    ImageNet's stem both are torchvision's networks, whose bottleneck has its stride in the 3x3 convolution
    ("v1.5"); the first weights differ (zero_init_residual is off in torchvision).

    Args:
        in_channels: Channels of the images: 1 for grey, 3 for RGB.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels; decides the stem when that is auto.
        depths: Residual blocks in each stage; the length of the list is the number of stages.
        width: Channels of the first stage; each later stage doubles them (and bottlenecks put out four times as many).
        block: basic is two 3x3 convolutions; bottleneck is 1x1, 3x3, 1x1, for depths of 50 layers and more.
        stem: cifar is a 3x3 convolution at full resolution; imagenet is a 7x7 convolution of stride 2 and a max pooling
            of stride 2; auto takes cifar for images of up to 64 pixels.
        zero_init_residual: Start every block as the identity, by a zero scale in its last norm (Goyal et al. 2017,
            arXiv:1706.02677, section 5.1). Holds under every initialisation scheme.
        dropout: Probability of zeroing a feature before the head, in training; 0 is off.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        depths: Sequence[int] = (2, 2, 2, 2),
        width: int = 64,
        block: Literal["basic", "bottleneck"] = "basic",
        stem: Literal["auto", "cifar", "imagenet"] = "auto",
        zero_init_residual: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_positive(depths=depths, width=width)
        if stem == "cifar" or (stem == "auto" and image_size <= CIFAR_STEM_UP_TO):
            self.stem = nn.Sequential(ConvNormAct(in_channels, width))
        else:
            self.stem = nn.Sequential(ConvNormAct(in_channels, width, 7, 2), nn.MaxPool2d(3, stride=2, padding=1))

        make_block = BasicBlock if block == "basic" else Bottleneck
        self.stages = nn.Sequential()
        channels = width
        for i, depth in enumerate(depths):
            stage = nn.Sequential()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(make_block(channels, width * 2**i, stride, zero_init_residual))
                channels = width * 2**i * make_block.expansion
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float -> (N, D), after the dropout; D is 512 in ResNet-18, 2048 in ResNet-50."""
        x = self.stages(self.stem(x))  # (N, C, H, W) -> (N, D, h, w)
        return self.dropout(self.pool(x).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (figure 2 of the paper)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, zero_init_residual: bool) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, width, stride=stride)
        self.conv2 = ConvNormAct(width, width, act=None)
        self.shortcut = _shortcut(in_channels, width, stride)
        self.act = nn.ReLU()
        if zero_init_residual:
            zero_init(self.conv2.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.conv1(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width, beside a shortcut (figure 5 of the paper)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, zero_init_residual: bool) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = ConvNormAct(in_channels, width, 1)
        self.conv2 = ConvNormAct(width, width, stride=stride)
        self.conv3 = ConvNormAct(width, out_channels, 1, act=None)
        self.shortcut = _shortcut(in_channels, out_channels, stride)
        self.act = nn.ReLU()
        if zero_init_residual:
            zero_init(self.conv3.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity, or where the shape changes a 1x1 convolution (option B of the paper's section 4.1)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNormAct(in_channels, out_channels, 1, stride, act=None)
