"""Figures made of small pictures: images, filters, feature maps, mistakes."""

from collections.abc import Sequence

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.utils import make_grid

from project.errors import UserError

RESOLUTION = 150  # pixels of a sheet per inch
GAP = 6  # pixels around each picture
LINE = 21  # pixels in height of a line of text
SMALL = 7.5  # points; about 15 letters to an inch


def shorten(text: str, length: int = 24) -> str:
    """At most that many characters; an ellipsis replaces the middle, because names differ at both ends."""
    text = text.replace("$", r"\$")  # a dollar would begin a formula
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}…{text[1 - half :]}"


def image_grid(images: Tensor, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Images side by side, a title under each.

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1]; C = 1, 3 or 4 (alpha, on white).
        titles: N strings; long ones are shortened.
        columns: Images in a row.
    """
    return _sheet(colours(images), [shorten(title, 16) for title in titles or []], columns)


def filters(weight: Tensor) -> Figure:
    """The first 64 filters of a convolution on one scale: grey is 0, black and white the largest weight (advice A24).

    Smooth, varied patterns are those of a trained layer; noise is that of a fresh, or an overfitted, one.

    Args:
        weight: (out, in, h, w). Three input channels are drawn in colour; of others each channel is a picture.
    """
    kernels = weight if weight.shape[1] == 3 else weight.flatten(0, 1)[:, None]  # (kernels, 3 or 1, h, w)
    return _sheet(colours(kernels[:64] / (2 * weight.abs().max()) + 0.5))


def feature_maps(activation: Tensor, limit: int = 32) -> Figure:
    """What each channel of a layer returns for one image: black is its lowest value, white its highest, written below.

    Args:
        activation: (C, H, W).
        limit: At most so many channels, the first.

    Raises:
        UserError: another shape.
    """
    if activation.ndim != 3:
        raise UserError(f"feature maps have shape (C, H, W), not {tuple(activation.shape)}")
    shown = activation[:limit, None].float()
    low, high = shown.amin((1, 2, 3), keepdim=True), shown.amax((1, 2, 3), keepdim=True)
    captions = [f"{a:.2g} to {b:.2g}" for a, b in zip(low.flatten(), high.flatten(), strict=True)]
    return _sheet(colours((shown - low) / (high - low)), captions)


def mistakes(
    images: Tensor, true: Sequence[str], predicted: Sequence[str], losses: Tensor, maps: Tensor | None = None
) -> Figure:
    """Images with their true and predicted class and their loss (advice A25).

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1].
        true: N class names.
        predicted: N class names.
        losses: (N,).
        maps: (N, H, W) in [0, 1]: each image comes a second time with its map (Grad-CAM of the predicted class) laid
            over it, from dark blue (0) to yellow (1).
    """
    pictures = colours(images)
    if maps is not None:
        heat = torch.from_numpy(colormaps["viridis"](maps.cpu().numpy())[..., :3]).permute(0, 3, 1, 2)
        pictures = torch.cat([pictures, 0.45 * pictures.mean(1, keepdim=True) + 0.55 * heat], 3)  # (N, 3, H, 2 W)
    captions = [
        f"true {shorten(a, 26)}\npredicted {shorten(b, 26)}\nloss {loss:.2f}"
        for a, b, loss in zip(true, predicted, losses, strict=True)
    ]
    return _sheet(pictures, captions, columns=4, side=2.6)


def colours(images: Tensor) -> Tensor:
    """(N, C, H, W), uint8 or float in [0, 1], C = 1, 3 or 4 (alpha, on white) -> float (N, 3, H, W) on the CPU.

    What is not finite becomes black.
    """
    values = images.detach().cpu().float() / (255 if images.dtype == torch.uint8 else 1)
    values = values.nan_to_num().clamp(0, 1)
    if images.shape[1] == 4:
        values = values[:, :3] * values[:, 3:] + (1 - values[:, 3:])
    return values.expand(-1, 3, -1, -1)


def _sheet(images: Tensor, captions: Sequence[str] = (), columns: int = 8, side: float = 1.1) -> Figure:
    """Pictures (N, 3, H, W) in [0, 1] on one axes: one for each would take a hundred times as long.

    Captions have as many lines each; the longer side of a picture is `side` inches.
    """
    scale = side * RESOLUTION / max(images.shape[2:])
    images = nn.functional.interpolate(images, scale_factor=scale, mode="nearest-exact" if scale > 1 else "area")
    below = LINE * len(captions[0].splitlines()) if captions else 0
    images = nn.functional.pad(images, (GAP, GAP, GAP, GAP + below), value=1.0)
    height, width = images.shape[2:]
    grid = make_grid(images, columns, padding=0, pad_value=1.0)  # (3, rows x height, columns x width)
    figure = Figure(figsize=(grid.shape[2] / RESOLUTION, grid.shape[1] / RESOLUTION))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(grid.permute(1, 2, 0).numpy(), aspect="auto")
    axes.axis("off")
    for i, caption in enumerate(captions):
        x, y = (i % columns + 0.5) * width, (i // columns + 1) * height - below
        axes.text(x, y, caption, fontsize=SMALL, ha="center", va="top")
    return figure
