"""Augmentations that read between the pixels: zoom and rotation, bilinear, the dtype kept."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from project.data.augment import Augmentation, Border, PositiveRange, choose
from project.data.draws import Draws

ANGLES = 4096  # a table of sines, as torch's own may differ in the last bit from batch to batch


@dataclass
class RandomResize(Augmentation):
    """Zooms in or out about a random place, the output as large as the input.

    A scale above 1 shows a window of 1 / scale of the side, enlarged; below 1 the image is shrunk. Breaks tasks in
    which the size is the class, and with a large scale those whose object is small or at the border.

    Args:
        scale: Lowest and highest magnification of the sides, drawn uniformly; [0.8, 1.25] is mild.
        mode: What comes into view below 1: "reflect" mirrors the image, "constant" is black.
    """

    scale: PositiveRange
    mode: Border = "reflect"

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        size = 1 / draws.uniform(*self.scale)[:, None]  # (N, 1), side of the window in sides of the image
        room = (1 - size).abs()  # the window within the image, or the image within the window
        x, y = (  # (N, W) and (N, H) in [-1, 1] of the image
            centres * (2 / len(centres)) * size + room * draws.uniform(-1, 1)[:, None] for centres in _centres(images)
        )
        return _sample(images, x[:, None, :], y[:, :, None], self.mode)


@dataclass
class Rotate(Augmentation):
    """Rotates about the centre by a random angle.

    Small angles suit most tasks, digits included (10 degrees). Large ones break whatever has an up: text, photographs.

    Args:
        degrees: Largest angle either way, up to 180; the angle is uniform over 4096 steps of the range.
        p: Probability of a rotation, in [0, 1].
        mode: What comes into view in the corners: "reflect" mirrors the image, "constant" is black.
    """

    degrees: float
    p: float = 1.0
    mode: Border = "reflect"

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        turned, step = draws.bernoulli(self.p), draws.integers(ANGLES)[:, None, None]
        angles = torch.linspace(-self.degrees, self.degrees, ANGLES, dtype=torch.float64).deg2rad()
        cos, sin = (table.float().to(images.device)[step] for table in (angles.cos(), angles.sin()))  # each (N, 1, 1)
        x, y = _centres(images)
        source_x = (cos * x - sin * y[:, None]) * (2 / len(x))  # (N, H, W), counter-clockwise for a positive angle
        source_y = (sin * x + cos * y[:, None]) * (2 / len(y))
        return choose(turned, _sample(images, source_x, source_y, self.mode), images)


def _centres(images: Tensor) -> list[Tensor]:
    """Centres of the columns (W,) and of the rows (H,), in pixels from the centre of the image."""
    return [torch.arange(side, device=images.device) + (0.5 - side / 2) for side in (images.shape[3], images.shape[2])]


def _sample(images: Tensor, x: Tensor, y: Tensor, mode: str) -> Tensor:
    """Bilinear samples at x and y, which broadcast to (N, H, W) in units of [-1, 1].

    `grid_sample` works image by image (tested); `affine_grid`, a batched matrix product, may round otherwise.
    """
    grid = torch.stack(torch.broadcast_tensors(x, y), -1)  # (N, H, W, 2)
    padding = "zeros" if mode == "constant" else "reflection"
    sampled = F.grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)
    return sampled.round_().to(torch.uint8) if images.dtype == torch.uint8 else sampled.clamp_(0, 1)
