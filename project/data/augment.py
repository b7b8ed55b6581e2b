"""Augmentations of a batch on the device: vectorised over the batch, one independent draw per image.

    augment = Augment([HorizontalFlip(), RandomCrop(padding=4), Brightness(0.2)], seed=0)
    images = augment(images, epoch, index)  # uint8 (N, C, H, W), N positions in the data set

What becomes of an image depends on the seed, the epoch and its index alone, to the last bit on one kind of device.
Every operation is therefore elementwise, a copy, or a sum in a fixed order: a batched mean may round otherwise. An
augmentation must leave the label true: each class says which tasks it breaks. A new one is a class and a line of YAML.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from torch import Tensor

from project.data.draws import Draws
from project.errors import UserError

Border = Literal["reflect", "constant"]  # what is beyond it: the image mirrored, or black
PositiveRange = tuple[PositiveFloat, PositiveFloat]
CHUNK = 2**20  # pixel values: on a CPU, 64 images of 224 pixels take up to half the time when done a few at a time
SHAPES = 1024  # a table of roots and exponentials, as torch's own may differ in the last bit from batch to batch


class Augmentation(ABC):
    """Base class: takes (N, C, H, W) images, uint8 or float32 in [0, 1], and returns new ones of the same shape."""

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Returns new images; a ValueError for arguments out of range, or images that it cannot change."""


@dataclass
class Augment:
    """Applies augmentations in order. Each has a stream of draws of its own, so appending one changes no other."""

    augmentations: list[Augmentation]
    seed: int

    def __call__(self, images: Tensor, epoch: int, index: Tensor) -> Tensor:
        """Augments images, uint8 or float32 in [0, 1], (N, C, H, W), by their positions in the data set, int64 (N,).
        The dtype stays, unless `augment_color` makes it float32. Raises a UserError that names the class.
        """
        size = max(1, CHUNK // images.shape[1:].numel() if images.device.type == "cpu" else len(images))
        changed = []
        for part, rows in zip(images.split(size), index.to(images.device).split(size), strict=True):
            draws = Draws(self.seed, epoch, rows)
            for number, augmentation in enumerate(self.augmentations):
                try:
                    part = augmentation(part, draws.stream(number))
                except ValueError as error:
                    raise UserError(f"data.augment: {type(augmentation).__name__}: {error}") from error
            changed.append(part)
        return torch.cat(changed)


def choose(mask: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    """`changed` where the mask (N,) is true, else `images`.

    Several times faster than `where` for uint8 on a CPU; indexing by the mask would make a GPU wait for the CPU.
    """
    count = len(images)
    return torch.cat([images, changed]).index_select(0, torch.arange(count, device=mask.device) + count * mask)


@dataclass
class Flip(Augmentation):
    """Base of the flips: mirrors one dimension.

    Args:
        p: Probability of the flip, in [0, 1].
    """

    p: float = 0.5
    dim: ClassVar[int]

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        return choose(self.flipped(draws), images.flip(self.dim), images)

    def flipped(self, draws: Draws) -> Tensor:
        """bool (N,): which images are."""
        return draws.bernoulli(self.p)


@dataclass
class HorizontalFlip(Flip):
    """Mirrors left and right. Breaks tasks in which the two differ: text, digits, road signs, sides in medicine.

    Args:
        p: Probability of the flip, in [0, 1]; with `alternate` of the flip in the first epoch.
        alternate: Draw only the first epoch's, and then show each image's two sides in turn (Jordan 2024,
            arXiv:2404.00498, section 3.6): two successive epochs show all sides of all images.
    """

    dim = -1
    alternate: bool = False

    def flipped(self, draws: Draws) -> Tensor:
        return draws.lasting().bernoulli(self.p) ^ (draws.turn % 2 > 0) if self.alternate else super().flipped(draws)


class VerticalFlip(Flip):
    """Mirrors top and bottom, for views without an up: cells, tissue, satellite images. Breaks photographs and text."""

    dim = -2


@dataclass
class Rotate90(Augmentation):
    """Rotates by 90, 180 or 270 degrees, each as likely; needs square images. Breaks text, digits and photographs.

    Args:
        p: Probability of a rotation, in [0, 1]; the default makes all four orientations equally likely.
    """

    p: float = 0.75

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        turns = draws.bernoulli(self.p) * (1 + draws.integers(3))  # (N,) quarter turns, counter-clockwise
        images = choose(turns >= 2, images.flip(-2, -1), images)
        return choose(turns % 2 == 1, images.transpose(-2, -1).flip(-2), images)


class FlipRotate(Augmentation):
    """One of the eight flips and rotations of a square, each as likely (the dihedral group D4). Needs square images.

    Replaces both flips and Rotate90, for views without an up: tissue, satellite images. Breaks text, photographs.
    """

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        element = draws.integers(8)
        images = choose(element & 1 > 0, images.flip(-1), images)
        images = choose(element & 2 > 0, images.flip(-2), images)
        return choose(element & 4 > 0, images.transpose(-2, -1), images)


@dataclass
class RandomCrop(Augmentation):
    """Pads all sides and crops a random window of the original size: a shift by up to `padding` pixels either way.

    Breaks tasks in which the class is a position, and tight pictures whose telling part is at the border.

    Args:
        padding: Largest shift in pixels; 1/8 of the side is usual (4 of 32).
        mode: What the padding is: "reflect" mirrors the image at its border pixels, "constant" is black.
    """

    padding: int
    mode: Border = "reflect"

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        padding, room = self.padding, 2 * self.padding + 1
        if self.mode == "constant":
            padded = F.pad(images, (padding,) * 4)
        else:
            padded = reflect(reflect(images, padding, -2), padding, -1)
        windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # (N, C, room, room, H, W), a view
        each = torch.arange(len(images), device=images.device)
        return windows[each, :, draws.integers(room), draws.integers(room)]  # (N, C, H, W)


@dataclass
class RandomErasing(Augmentation):
    """Replaces a rectangle by one random grey, after Zhong et al. 2017 (arXiv:1708.04896), who draw every pixel
    of it anew, and rectangles until one fits; ours is cut to the image.

    Breaks tasks in which the telling part is small: the rectangle may hide all of it.

    Args:
        p: Probability of erasing, in [0, 1].
        area: Smallest and largest share of the image that is hidden.
        ratio: Lowest and highest height over width of the rectangle.
    """

    p: float = 0.25
    area: tuple[ClosedUnitInterval, ClosedUnitInterval] = (0.02, 0.33)
    ratio: PositiveRange = (0.3, 3.3)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        hidden = draws.bernoulli(self.p)[:, None, None, None]
        # Ratios by their logarithm: a tall shape is as likely as the same lying down.
        areas, ratios = (
            torch.linspace(*ends, SHAPES, dtype=torch.float64) for ends in (self.area, map(math.log, self.ratio))
        )
        side, stretch = (
            each.sqrt().float().to(images.device)[draws.integers(SHAPES)] for each in (areas, ratios.exp())
        )  # (N,) each
        scale = math.sqrt(images.shape[2] * images.shape[3])
        for dim, length in ((2, side * stretch), (3, side / stretch)):
            size = images.shape[dim]
            length = (length * scale).round().clamp(1, size)[:, None]
            start = (draws.uniform()[:, None] * (size - length + 1)).floor()
            place = torch.arange(size, device=images.device) - start  # (N, size)
            hidden = hidden & ((place >= 0) & (place < length))[:, None, None].transpose(dim, 3)  # at last (N, 1, H, W)
        grey = draws.integers(256)[:, None, None, None]
        return torch.where(hidden, grey.to(torch.uint8) if images.dtype == torch.uint8 else grey / 255, images)


def reflect(images: Tensor, padding: int, dim: int) -> Tensor:
    """Mirrors both ends of a dimension about the border pixel: torch's "reflect" has no uint8 version."""
    size = images.shape[dim]
    if not 0 <= padding < size:
        raise ValueError(f"cannot mirror {padding} pixels beyond the border of images of {size} pixels")
    before = images.narrow(dim, 1, padding).flip(dim)
    after = images.narrow(dim, size - 1 - padding, padding).flip(dim)
    return torch.cat([before, images, after], dim)
