"""Augmentations that read between the pixels: zoom and rotation, bilinear, the dtype kept."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from project.data.augment import Augmentation, choose
from project.data.draws import Draws

PADDING = {"reflect": "reflection", "constant": "zeros"}
ANGLES = 4096  # a table of sines, as torch's own may differ in the last bit from batch to batch


class RandomResize(Augmentation):
    """Zooms in or out about a random place, the output as large as the input.

    A scale above 1 shows a window of 1 / scale of the side, enlarged; below 1 the whole image is shrunk and put at a
    random place. It reads single points, so much below 0.5 fine detail aliases.

    Breaks tasks in which the size is the class (a cell's size, one product in two sizes), and with a large scale those
    whose object is small or at the border: the window may miss it.

    Args:
        scale: lowest and highest magnification of the sides, drawn uniformly; [0.8, 1.25] is mild.
        mode: what comes into view below 1: "reflect" mirrors the image, "constant" is black.
    """

    def __init__(self, scale: tuple[float, float], mode: Literal["reflect", "constant"] = "reflect") -> None:
        low, high = scale
        fits = 0 < low <= high < math.inf
        self.require(fits, f"scale must be [low, high] with 0 < low <= high, not [{low}, {high}]")
        self.require(mode in PADDING, f'mode must be "reflect" or "constant", not {mode!r}')
        self.scale = (low, high)
        self.mode = mode

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        size = 1 / draws.uniform(*self.scale)[:, None]  # (N, 1), side of the window in sides of the image
        room = (1 - size).abs()  # the window within the image, or the image within the window
        x, y = _centres(images)  # (W,), (H,)
        x = x * (2 / images.shape[-1]) * size + room * draws.uniform(-1, 1)[:, None]  # (N, W) in [-1, 1] of the image
        y = y * (2 / images.shape[-2]) * size + room * draws.uniform(-1, 1)[:, None]  # (N, H)
        return _sample(images, x[:, None, :], y[:, :, None], self.mode)


class Rotate(Augmentation):
    """Turns about the centre by a random angle.

    Small angles suit most tasks, digits included (10 degrees). Large ones break whatever has an up: text, a 6 and a 9,
    everyday photographs. It blurs slightly: quarter turns alone are better had from Rotate90.

    Args:
        degrees: largest angle either way, in [0, 180]; the angle is uniform over 4096 steps of the range.
        p: probability of a turn, in [0, 1].
        mode: what comes into view in the corners: "reflect" mirrors the image, "constant" is black.
    """

    def __init__(self, degrees: float, p: float = 1.0, mode: Literal["reflect", "constant"] = "reflect") -> None:
        self.require(0 <= degrees <= 180, f"degrees must be in [0, 180], not {degrees}")
        self.require_probability(p)
        self.require(mode in PADDING, f'mode must be "reflect" or "constant", not {mode!r}')
        self.degrees = degrees
        self.p = p
        self.mode = mode
        angles = [math.radians(degrees * (2 * step / (ANGLES - 1) - 1)) for step in range(ANGLES)]
        self._table = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])  # (ANGLES, 2)

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        turned = draws.bernoulli(self.p)
        cos, sin = self._table.to(images.device)[draws.integers(ANGLES)][:, :, None, None].unbind(1)  # each (N, 1, 1)
        x, y = _centres(images)
        x, y = x[None, None, :], y[None, :, None]
        source_x = (cos * x - sin * y) * (2 / images.shape[-1])  # (N, H, W), counter-clockwise for a positive angle
        source_y = (sin * x + cos * y) * (2 / images.shape[-2])
        return choose(turned, _sample(images, source_x, source_y, self.mode), images)


def _centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the columns (W,) and of the rows (H,), in pixels from the centre of the image."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device, dtype=torch.float32) + (0.5 - width / 2)
    y = torch.arange(height, device=images.device, dtype=torch.float32) + (0.5 - height / 2)
    return x, y


def _sample(images: Tensor, x: Tensor, y: Tensor, mode: str) -> Tensor:
    """Bilinear samples at x and y, which broadcast to (N, H, W) in units of [-1, 1].

    On a CPU `grid_sample` works image by image, hence alike in any batch (a test holds it to that). The usual
    `affine_grid` is a batched matrix product, free to round otherwise in another batch.
    """
    grid = torch.stack(torch.broadcast_tensors(x, y), -1)  # (N, H, W, 2)
    sampled = F.grid_sample(images.float(), grid, padding_mode=PADDING[mode], align_corners=False)
    return sampled.round_().to(torch.uint8) if images.dtype == torch.uint8 else sampled.clamp_(0, 1)
