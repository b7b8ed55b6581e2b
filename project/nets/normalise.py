"""From pixels to what a network takes: zero mean, unit deviation."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from project.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Normalise(nn.Module):
    """uint8, or float in [0, 1], (N, C, H, W) -> float with the training images' mean 0 and standard deviation 1.

    Grey images (N, 1, H, W) become as many channels as there are statistics, each normalised by its own.
    """

    def __init__(
        self, channels: int, mean: list[float] | None = None, std: list[float] | None = None, channels_last: bool = True
    ) -> None:
        """
        Args:
            channels: That come out.
            mean: Of each channel, in [0, 1]; None takes ImageNet's: three colours, their mean for grey, 0.5 for alpha.
            std: Standard deviation of each channel, likewise.
            channels_last: Give images in NHWC order.

        Raises:
            UserError: for another number of values, or a standard deviation of 0 or less.
        """
        super().__init__()
        self.channels_last, self.given = channels_last, (mean is not None, std is not None)
        if mean is None:
            mean = [0.449] if channels == 1 else (IMAGENET_MEAN + [0.5] * channels)[:channels]
        if std is None:
            std = [0.226] if channels == 1 else (IMAGENET_STD + [0.5] * channels)[:channels]
        if {len(mean), len(std)} != {channels} or min(std) <= 0:
            raise UserError(f"model.mean and model.std must be {channels} numbers each, std above 0 (data.channels)")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def take(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Use the statistics that weights were pretrained with, where none were given; in turn, as the weights are."""
        for buffer, given, values in zip((self.mean, self.std), self.given, (mean, std), strict=True):
            if values is not None and not given:
                buffer.copy_(torch.from_numpy(np.resize(values, buffer.shape)))  # the values in turn

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        images = (images - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images
