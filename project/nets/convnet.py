"""A plain stack of conv-BN-ReLU blocks: the network to start from, small enough to read in a minute."""

from collections.abc import Sequence

from torch import Tensor, nn

from project.nets.blocks import ConvNormAct, Network, Pooling, check_positive, global_pool


class ConvNet(Network):
    """Blocks of convolutions, each ended by a max pooling, then global pooling and a linear head.

    VGG's recipe (Simonyan and Zisserman 2014, arXiv:1409.1556) with batch norm; the first block reads the image.

    Args:
        in_channels: Channels of the images: 1 for grey, 3 for RGB.
        num_classes: Number of classes.
        image_size: Height and width of the images in pixels.
        channels: Output channels of each block; the length of the list is the depth in blocks.
        convs_per_block: Convolutions in each block.
        kernel_size: Side of every convolution's kernel in pixels; odd.
        stride: Stride of the first convolution of each block.
        pool_kernel: Side of the max pooling window at the end of each block in pixels; 1 is no pooling.
        pool_stride: Step of that window in pixels; null takes pool_kernel, so that windows tile the map.
        dropout: Probability of zeroing a feature before the head, in training; 0 is off.
        pooling: Global pooling over the last feature map, mean (avg) or maximum (max).

    Raises:
        ValueError: a value is out of range, or image_size is too small for the strides and poolings.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        image_size: int,
        channels: Sequence[int] = (32, 64, 128),
        convs_per_block: int = 1,
        kernel_size: int = 3,
        stride: int = 1,
        pool_kernel: int = 2,
        pool_stride: int | None = None,
        dropout: float = 0.0,
        pooling: Pooling = "avg",
    ) -> None:
        super().__init__()
        pool_stride = pool_kernel if pool_stride is None else pool_stride
        check_positive(channels=channels, convs_per_block=convs_per_block, stride=stride)
        check_positive(pool_kernel=pool_kernel, pool_stride=pool_stride)
        smallest = 1  # pixel after the last block; counted backwards from there
        for _ in channels:
            smallest = (smallest - 1) * pool_stride + pool_kernel  # inverse of floor((n - kernel) / stride) + 1
            smallest = (smallest - 1) * stride + 1  # inverse of ceil(n / stride): the padding keeps the border
        if image_size < smallest:
            raise ValueError(f"image_size: {image_size} must be {smallest} or more; or use fewer entries in channels")

        self.stages = nn.Sequential()
        width = in_channels
        for out in channels:
            block = nn.Sequential()
            for i in range(convs_per_block):
                block.append(ConvNormAct(width, out, kernel_size, stride if i == 0 else 1))
                width = out
            block.append(nn.MaxPool2d(pool_kernel, pool_stride))
            self.stages.append(block)
        self.pool = global_pool(pooling)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C, H, W) float -> (N, channels[-1]), after the dropout."""
        x = self.stages(x)  # (N, C, H, W) -> (N, channels[-1], h, w)
        return self.dropout(self.pool(x).flatten(1))
