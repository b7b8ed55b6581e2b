"""Random erasing: a rectangle of the image is hidden."""

import math

import torch
from torch import Tensor

from project.data.augment import Augmentation
from project.data.draws import Draws

SHAPES = 1024  # a table of roots and exponentials, as torch's own may differ in the last bit from batch to batch


class RandomErasing(Augmentation):
    """Replaces a rectangle by a flat grey of its own, so that the network does not rely on one part of the object.

    Zhong et al. 2017, arXiv:1708.04896, algorithm 1, with the rectangle kept inside the image. Breaks tasks in which the telling
    part is small: the rectangle may hide all of it.

    Args:
        p: probability of erasing, in [0, 1].
        area: smallest and largest share of the image that is hidden.
        ratio: lowest and highest height over width of the rectangle.
    """

    def __init__(
        self, p: float = 0.25, area: tuple[float, float] = (0.02, 0.33), ratio: tuple[float, float] = (0.3, 3.3)
    ) -> None:
        self.require_probability(p)
        self.require(
            0 < area[0] <= area[1] < 1, f"area must be two shares, 0 < smallest <= largest < 1, not {list(area)}"
        )
        self.require(
            0 < ratio[0] <= ratio[1] < math.inf, f"ratio must be two positive numbers, lower first, not {list(ratio)}"
        )
        self.p = p
        shares = [area[0] + (area[1] - area[0]) * i / (SHAPES - 1) for i in range(SHAPES)]
        low, high = math.log(ratio[0]), math.log(ratio[1])  # a tall shape as likely as the same lying down
        ratios = [math.exp(low + (high - low) * i / (SHAPES - 1)) for i in range(SHAPES)]
        self._side = torch.tensor([math.sqrt(share) for share in shares])
        self._stretch = torch.tensor([math.sqrt(ratio) for ratio in ratios])

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        rows, columns = images.shape[-2:]
        erased = draws.bernoulli(self.p)
        side = self._side.to(images.device)[draws.integers(SHAPES)]  # (N,) root of the area's share
        stretch = self._stretch.to(images.device)[draws.integers(SHAPES)]
        scale = math.sqrt(rows * columns)
        height = (side * stretch * scale).round().clamp(1, rows)
        width = (side / stretch * scale).round().clamp(1, columns)
        top = (draws.uniform() * (rows - height + 1)).floor()
        left = (draws.uniform() * (columns - width + 1)).floor()
        grey = draws.integers(256).to(torch.float32)
        value = grey.to(torch.uint8) if images.dtype == torch.uint8 else grey / 255
        y = torch.arange(rows, device=images.device)[None, :, None]  # (1, H, 1)
        x = torch.arange(columns, device=images.device)[None, None, :]  # (1, 1, W)
        inside = (
            (y >= _each(top)) & (y < _each(top + height)) & (x >= _each(left)) & (x < _each(left + width))
        )  # (N, H, W)
        hidden = (inside & _each(erased))[:, None]  # (N, 1, H, W)
        return torch.where(hidden, value[:, None, None, None], images)


def _each(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1)."""
    return values[:, None, None]
