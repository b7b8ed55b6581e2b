"""Augmentations of colour, blur and noise: uint8 becomes float32 in [0, 1], and stays there."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from project.data.augment import Augmentation, choose, reflect
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
class Brightness(Photometric):
    """Multiplies all values by a random factor in [1 - amount, 1 + amount].

    Breaks tasks in which the absolute brightness is the measurement: X-ray density, stained assays, thermal images.

    Args:
        amount: Largest relative change, in [0, 1]; 0.2 is mild, 0.4 strong.
    """

    amount: float

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        return colour * _factor(self.amount, draws)


@dataclass
class Contrast(Photometric):
    """Multiplies the distance from the image's mean grey by a random factor in [1 - amount, 1 + amount].

    Breaks tasks in which faint structure is the class (haze, low-contrast lesions): little contrast may hide it.

    Args:
        amount: Largest relative change, in [0, 1]; 0.2 is mild, 0.4 strong.
    """

    amount: float

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        grey = colour if colour.shape[1] == 1 else _grey(colour)
        mean = _ordered_sum(grey.flatten(1)) * (1 / grey.shape[1:].numel())  # (N, 1)
        return _blend(colour, mean[:, :, None, None], _factor(self.amount, draws))


@dataclass
class Saturation(Photometric):
    """Multiplies the distance from each pixel's own grey by a random factor in [1 - amount, 1 + amount]. Needs colour.

    Breaks tasks in which the colour is the class: ripeness, stains, signal lights, flower and bird species.

    Args:
        amount: Largest relative change, in [0, 1]; 0.2 is mild, 0.4 strong.
    """

    amount: float

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        if colour.shape[1] == 1:
            raise ValueError("grey images have no saturation; remove it from the augmentations")
        return _blend(colour, _grey(colour), _factor(self.amount, draws))


@dataclass
class Blur(Photometric):
    """Gaussian blur of a random width.

    Breaks tasks that depend on fine detail: texture, small text, focus or quality grading, small images (32 pixels)
    altogether.

    Args:
        kernel_size: Width of the window in pixels, odd; 6 sigma or more holds the whole bell.
        sigma: Lowest and highest standard deviation in pixels; uniform over 256 steps of the range.
        p: Probability of the blur, in [0, 1].
    """

    kernel_size: int
    sigma: tuple[float, float] = (0.1, 2.0)
    p: float = 0.5

    @cached_property
    def _table(self) -> Tensor:
        """Half kernels of sum 1, from the centre outwards: (SIGMAS, radius + 1)."""
        low, high = self.sigma
        if self.kernel_size % 2 == 0 or not 0 < low <= high:
            raise ValueError(f"kernel_size must be odd and sigma above 0, not {self.kernel_size} and [{low}, {high}]")
        sigmas = torch.linspace(low, high, SIGMAS, dtype=torch.float64)
        distance = torch.arange(self.kernel_size // 2 + 1, dtype=torch.float64)
        bell = torch.exp(-0.5 * (distance / sigmas[:, None]) ** 2)
        return (bell / (2 * bell.sum(1, keepdim=True) - 1)).float()

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        blurred = draws.bernoulli(self.p)
        weights = self._table.to(colour.device)[draws.integers(SIGMAS)]  # (N, radius + 1)
        across = _convolve(colour, weights, -1)
        return choose(blurred, _convolve(across, weights, -2), colour)


@dataclass
class GaussianNoise(Photometric):
    """Adds independent normal noise to every value.

    Breaks tasks whose signal is as faint as the noise or is noise itself: low light, texture, sensor or forgery
    detection.

    Args:
        std: Standard deviation, 0 or more, where the values span [0, 1]; 0.05 is clearly visible.
        p: Probability of the noise, in [0, 1].
    """

    std: float
    p: float = 0.5

    def adjust(self, colour: Tensor, draws: Draws) -> Tensor:
        std = draws.bernoulli(self.p) * self.std  # (N,)
        return draws.normal(tuple(colour.shape[1:])).mul_(std[:, None, None, None]).add_(colour)


def _factor(amount: float, draws: Draws) -> Tensor:
    if not 0 <= amount <= 1:
        raise ValueError(f"amount must be in [0, 1], not {amount}")
    return draws.uniform(1 - amount, 1 + amount)[:, None, None, None]


def _grey(colour: Tensor) -> Tensor:
    """Luma of ITU-R BT.601 with torchvision's digits, (N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = colour.split(1, 1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114)


def _blend(colour: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor * (colour - other), for a factor that may exceed 1."""
    return (colour * factor).add_(other * (1 - factor))


def _ordered_sum(values: Tensor) -> Tensor:
    """Sum of each row, (N, D) -> (N, 1), by halving: `sum` splits a single large image among threads, a batch not."""
    while values.shape[1] > 1:
        half = (values.shape[1] + 1) // 2
        folded = values[:, :half].clone()
        folded[:, : values.shape[1] - half] += values[:, half:]
        values = folded
    return values


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
