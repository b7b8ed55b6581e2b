"""Augmentations of colour, blur and noise: uint8 becomes float32 in [0, 1], and stays there."""

from dataclasses import dataclass

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import Tensor

from project.data.augment import Augmentation, PositiveRange, choose, reflect
from project.data.draws import Draws

SIGMAS = 256  # a table of blurs, as torch's exp may differ in the last bit from batch to batch


class Photometric(Augmentation):
    """Base of the classes below: they `adjust` the colour and leave the alpha of four-channel images as it is."""

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float().mul_(1 / 255)
        colour = self.adjust(images[:, :3], draws).clamp_(0, 1)
        return torch.cat([colour, images[:, 3:]], 1) if images.shape[1] == 4 else colour

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        """Takes float32 (N, 1 or 3, H, W) in [0, 1] and returns a new tensor, in any range."""


@dataclass
class Jitter(Photometric):
    """Base of brightness, contrast and saturation: multiplies the distance from a reference by a random factor.

    Args:
        amount: Largest relative change, in [0, 1]: factors from 1 - amount to 1 + amount; 0.2 is mild, 0.4 strong.
    """

    amount: ClosedUnitInterval

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        factor = draws.uniform(1 - self.amount, 1 + self.amount)[:, None, None, None]
        return (colour * factor).add_(self.reference(colour) * (1 - factor))

    def reference(self, colour: Tensor) -> Tensor | float:
        """What a factor of 0 gives; of a shape that broadcasts to (N, C, H, W)."""
        return 0.0  # black


class Brightness(Jitter):
    """Multiplies all values by a random factor. Breaks tasks in which brightness is the measurement, as in X-rays."""


class Contrast(Jitter):
    """Multiplies the distance from the image's mean grey by a random factor. Breaks tasks of faint structure (haze)."""

    def reference(self, colour: Tensor) -> Tensor:
        """The mean, (N, 1, 1, 1), by halving: `mean` splits a single large image among threads, a batch not."""
        grey = (colour if colour.shape[1] == 1 else _grey(colour)).flatten(1)
        count = grey.shape[1]
        while (size := grey.shape[1]) > 1:
            half = (size + 1) // 2
            folded = grey[:, :half].clone()
            folded[:, : size - half] += grey[:, half:]
            grey = folded
        return grey[:, :, None, None] * (1 / count)


class Saturation(Jitter):
    """Multiplies the distance from each pixel's own grey by a random factor; needs colour.

    Breaks tasks in which the colour is the class: ripeness, stains, signal lights, flower and bird species.
    """

    def reference(self, colour: Tensor) -> Tensor:
        if colour.shape[1] == 1:
            raise ValueError("grey images have no saturation; remove it from the augmentations")
        return _grey(colour)


@dataclass
class Blur(Photometric):
    """Gaussian blur of a random width. Breaks tasks of fine detail: texture, text, small images (32 pixels).

    Args:
        kernel_size: Width of the window in pixels, odd (an even one is one wider); 6 sigma holds the whole bell.
        sigma: Lowest and highest standard deviation in pixels; uniform over 256 steps of the range.
        p: Probability of the blur, in [0, 1].
    """

    kernel_size: PositiveInt
    sigma: PositiveRange = (0.1, 2.0)
    p: float = 0.5

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        sigmas = torch.linspace(*self.sigma, SIGMAS, dtype=torch.float64)
        distance = torch.arange(self.kernel_size // 2 + 1, dtype=torch.float64)
        bell = torch.exp(-0.5 * (distance / sigmas[:, None]) ** 2)
        table = (bell / (2 * bell.sum(1, keepdim=True) - 1)).float()  # half kernels of sum 1, from the centre outwards
        blurred = draws.bernoulli(self.p)
        weights = table.to(colour.device)[draws.integers(SIGMAS)]  # (N, radius + 1)
        across = _convolve(colour, weights, -1)
        return choose(blurred, _convolve(across, weights, -2), colour)


@dataclass
class GaussianNoise(Photometric):
    """Adds independent normal noise to every value. Breaks tasks whose signal is as faint: low light, texture.

    Args:
        std: Standard deviation, 0 or more, where the values span [0, 1]; 0.05 is clearly visible.
        p: Probability of the noise, in [0, 1].
    """

    std: float
    p: float = 0.5

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        std = draws.bernoulli(self.p) * self.std  # (N,)
        return draws.normal(tuple(colour.shape[1:])).mul_(std[:, None, None, None]).add_(colour)


def _grey(colour: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 with torchvision's digits, (N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = colour.split(1, 1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114)


def _convolve(colour: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Convolves a dimension of each image with its own symmetric kernel, (N, radius + 1) from the centre outwards.

    Sums of shifted copies: `conv2d` is free to pick its algorithm, and with it the rounding, by the shape of the batch.
    """
    radius, size = weights.shape[1] - 1, colour.shape[dim]
    padded = reflect(colour, radius, dim)
    per_tap = weights.t()[:, :, None, None, None]  # (radius + 1, N, 1, 1, 1)
    total = colour * per_tap[0]
    for tap in range(1, radius + 1):
        pair = padded.narrow(dim, radius - tap, size) + padded.narrow(dim, radius + tap, size)
        total.add_(pair.mul_(per_tap[tap]))
    return total
