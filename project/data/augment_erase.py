"""Random erasing: a rectangle of the image is hidden."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from project.data.augment import Augmentation
from project.data.draws import Draws

SHAPES = 1024  # a table of roots and exponentials, as torch's own may differ in the last bit from batch to batch


@dataclass
class RandomErasing(Augmentation):
    """Replaces a rectangle by a flat random grey, so that the network does not rely on one part of the object.

    Zhong et al. 2017, arXiv:1708.04896, algorithm 1, with the rectangle kept inside the image. Breaks tasks in which the
    telling part is small: the rectangle may hide all of it.

    Args:
        p: Probability of erasing, in [0, 1].
        area: Smallest and largest share of the image that is hidden.
        ratio: Lowest and highest height over width of the rectangle.
    """

    p: float = 0.25
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Square roots of the shares, and of the ratios of height over width: (SHAPES,) each."""
        (smallest, largest), (low, high) = self.area, self.ratio
        if not (0 < smallest <= largest < 1 and 0 < low <= high):
            raise ValueError(
                f"area and ratio must be [low, high] above 0, area below 1, not {self.area} and {self.ratio}"
            )
        steps = torch.arange(SHAPES, dtype=torch.float64)
        shares = smallest + (largest - smallest) * steps / (SHAPES - 1)
        low, high = math.log(low), math.log(high)  # a tall shape as likely as the same lying down
        ratios = (low + (high - low) * steps / (SHAPES - 1)).exp()
        return shares.sqrt().float(), ratios.sqrt().float()

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        rows, columns = images.shape[-2:]

        def span(size: int, length: Tensor) -> Tensor:
            """A stretch of this length (N,) at a random place of a side: bool (N, size)."""
            start = (draws.uniform() * (size - length + 1)).floor()[:, None]
            place = torch.arange(size, device=images.device)
            return (place >= start) & (place < start + length[:, None])

        erased = draws.bernoulli(self.p)
        side, stretch = (table.to(images.device)[draws.integers(SHAPES)] for table in self._tables)  # (N,) each
        scale = math.sqrt(rows * columns)
        down = span(rows, (side * stretch * scale).round().clamp(1, rows))
        across = span(columns, (side / stretch * scale).round().clamp(1, columns))
        grey = draws.integers(256)
        value = grey.to(torch.uint8) if images.dtype == torch.uint8 else grey / 255
        hidden = down[:, None, :, None] & across[:, None, None] & erased[:, None, None, None]  # (N, 1, H, W)
        return torch.where(hidden, value[:, None, None, None], images)
