"""A nine-layer residual network: few wide layers, which are fast on a CPU too."""

from collections.abc import Sequence

from torch import Tensor, nn

from project.nets.blocks import ConvNormAct, Network, Pooling, check_positive, global_pool, stride_of_stem


class ResNet9(Network):
    """A stem, three stages of conv-BN-ReLU and max pooling, some with a residual pair, a scaled linear head.

    Few wide layers, where a CPU or GPU is fast, after David Page's entry to the DAWNBench competition (2018, "How to
    train your ResNet") and Keller Jordan's airbench (2024, arXiv:2404.00498).

    The stem keeps images of up to 64 pixels at full size. Larger ones get the smallest stride of 2, 4, 8... that brings
    them to 64 or fewer, with a kernel of 2 * stride - 1 so that neighbours overlap: 128 -> 64, 224 -> 56.

    Args:
        in_channels: Channels of the images: 1 for grey, 3 for RGB.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels, at least 2 to the number of stages (8 for three).
        widths: Channels of the stem, then of each stage; each stage halves the size.
        residual_stages: Stages, counted from 1, that end in a residual pair of convolutions; [] for none.
        head_scale: Factor on the features before the head, below 1 as max-pooled features are large.
        dropout: Probability of zeroing a feature before the head, in training; 0 is off.
        pooling: Global pooling over the last feature map, maximum (max) or mean (avg).

    Raises:
        ValueError: a value is out of range, or image_size is too small for the stages.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        widths: Sequence[int] = (64, 128, 256, 512),
        residual_stages: Sequence[int] = (1, 3),
        head_scale: float = 0.125,
        dropout: float = 0.0,
        pooling: Pooling = "max",
    ) -> None:
        super().__init__()
        check_positive(widths=widths)
        num_stages = len(widths) - 1
        if image_size < 2**num_stages:
            raise ValueError(
                f"image_size: {image_size} must be {2**num_stages} or more; or use fewer entries in widths"
            )
        if not set(residual_stages) <= set(range(1, num_stages + 1)):
            raise ValueError(f"residual_stages: {list(residual_stages)} must lie between 1 and {num_stages}")
        stride = stride_of_stem(image_size)
        self.stem = ConvNormAct(in_channels, widths[0], kernel_size=max(3, 2 * stride - 1), stride=stride)
        self.stages = nn.Sequential()
        for i in range(1, num_stages + 1):
            stage = nn.Sequential(ConvNormAct(widths[i - 1], widths[i]), nn.MaxPool2d(2))
            if i in residual_stages:
                stage.append(ResidualPair(widths[i]))
            self.stages.append(stage)
        self.pool = global_pool(pooling)
        self.dropout = nn.Dropout(dropout)
        self.head_scale = head_scale
        self.head = nn.Linear(widths[-1], num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float -> (N, widths[-1]), times head_scale, after the dropout."""
        x = self.stages(self.stem(x))  # (N, C, H, W) -> (N, widths[-1], h, w)
        return self.dropout(self.pool(x).flatten(1)) * self.head_scale


class ResidualPair(nn.Module):
    """x + conv-BN-ReLU(conv-BN-ReLU(x)): the ReLU comes before the sum, so both terms are non-negative."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(width, width)
        self.conv2 = ConvNormAct(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))
