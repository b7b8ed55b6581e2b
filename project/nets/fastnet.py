"""The network of the fastest trainings on CIFAR-10: whitened patches, few wide layers, almost nothing between them."""

from collections.abc import Sequence
from functools import partial

import torch
from jsonargparse.typing import ClosedUnitInterval
from torch import Tensor, nn

from project.nets.blocks import (
    ACTIVATIONS,
    Activation,
    ConvNormAct,
    Network,
    Pooling,
    check_positive,
    fix_weight,
    global_pool,
    initialize,
    stride_of_stem,
)

EPS = 5e-4  # added to the mean square of each direction, as in airbench; the pixels' own is about 1
# Of the head's first weights. airbench has 1, and a learning rate for the head alone; with weights and head_scale
# changed by one factor, and the learning rate by its square, the steps are the same, and one rate serves all the rest.
HEAD_STD = 0.5
AT_ONCE = 16  # images, when patches are cut out: 75 MB at 224 pixels in float64


class FastNet(Network):
    """A stem that whitens patches, stages of two conv-BN-act with a max pooling in the first, a scaled linear head.

    After Keller Jordan's airbench (2024, arXiv:2404.00498, section 3; airbench94_muon). The filters of the stem are
    those of the training images: `prepare` computes them, the state dict keeps them, and nothing trains them. Until
    then they are PyTorch's, at random. The other convolutions start as `dirac` of `model.init` has it.

    The stem keeps images of up to 64 pixels at full size. Larger ones get the smallest stride of 2, 4, 8... that brings
    them to 64 or fewer, and a kernel of 2 * stride, of whose directions only the strongest are kept.

    Args:
        in_channels: Channels of the images: 1 for grey, 3 for RGB.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels, at least 2 to the number of stages, + whiten - 1.
        widths: Channels of each stage; each halves the size.
        whiten: Side of the patches in pixels, at full size; the stem has 2 * in_channels * whiten**2 filters. Null
            for no whitening: a side of 2, and filters that are drawn like any other, and train.
        act: The activation.
        norm_momentum: Share of the batch's statistics in the running ones of the batch norms, as torch means it. High,
            for trainings of a few hundred steps.
        norm_scale: Whether the norms have a scale that trains; else it is 1.
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
        widths: Sequence[int] = (96, 320, 320),
        whiten: int | None = 2,
        act: Activation = "gelu",
        norm_momentum: ClosedUnitInterval = 0.4,
        norm_scale: bool = False,
        head_scale: float = 1 / 32,
        dropout: float = 0.0,
        pooling: Pooling = "max",
    ) -> None:
        super().__init__()
        side = whiten or 2
        check_positive(widths=widths, whiten=side)
        block = partial(ConvNormAct, act=act, norm_momentum=float(norm_momentum), norm_scale=norm_scale)
        stride, channels = stride_of_stem(image_size), 2 * in_channels * side**2
        kernel_size = side if stride == 1 else max(side, 2 * stride)
        conv = Whitening if whiten else nn.Conv2d
        self.stem = nn.Sequential(conv(in_channels, channels, kernel_size, stride), ACTIVATIONS[act]())
        smallest = (2 ** len(widths) - 1) * stride + kernel_size
        if image_size < smallest:
            hint = "or use fewer entries in widths, or a smaller whiten"
            raise ValueError(f"image_size: {image_size} must be {smallest} or more; {hint}")
        self.stages = nn.Sequential()
        for width in widths:
            self.stages.append(nn.Sequential(block(channels, width, pool=2), block(width, width)))
            channels = width
        self.pool = global_pool(pooling)
        self.dropout = nn.Dropout(dropout)
        self.head_scale = head_scale
        self.head = nn.Linear(channels, num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        initialize(self, "dirac")

    def prepare(self, images: Tensor) -> None:
        """Take the filters of the stem from normalised images, (N, C, H, W), unless it has some already."""
        if isinstance(self.stem[0], Whitening) and not self.stem[0].fitted:
            self.stem[0].fit(images)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float -> (N, widths[-1]), times head_scale, after the dropout."""
        x = self.stages(self.stem(x))  # (N, C, H, W) -> (N, widths[-1], h, w)
        return self.dropout(self.pool(x).flatten(1)) * self.head_scale


class Whitening(nn.Conv2d):
    """A convolution without padding whose filters are uncorrelated directions of its patches, each with its negative.

    The outputs of the first half have mean squares of 1, and mean products of 0. They are not centred, as in airbench:
    a direction that is constant but for noise has a small gain then. The bias trains, the weight is a buffer.
    """

    def __init__(self, in_channels: int, filters: int, kernel_size: int, stride: int) -> None:
        super().__init__(in_channels, filters, kernel_size, stride)
        fix_weight(self)

    @property
    def fitted(self) -> bool:
        """Whether the filters are pairs, as `fit` makes them."""
        first, second = self.weight.chunk(2)
        return torch.equal(first, -second)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """The eigenvectors of the patches' mean products, strongest first, over the root of eigenvalue + EPS."""
        count, products = 0, 0
        for part in images.split(AT_ONCE):
            patches = nn.functional.unfold(part.double(), self.kernel_size, stride=self.stride)  # (n, D, places)
            patches = patches.transpose(0, 1).flatten(1)  # (D, n * places)
            count += patches.shape[1]
            products = products + patches @ patches.T
        squares, directions = torch.linalg.eigh(products / count)  # ascending; in columns
        filters = (directions / (squares.clamp(min=0) + EPS).sqrt()).T.flip(0)[: self.out_channels // 2]
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
        nn.init.zeros_(self.bias)
