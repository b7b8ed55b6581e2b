"""Figures made of small pictures: images, filters, feature maps, mistakes."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from project.errors import UserError
from project.extras.look.drawing import SMALL, colours_of, numbers, place, sheet, shorten, size_of

FILTERS = 64  # at most drawn


def image_grid(images: Tensor, titles: Sequence[str] | None = None, columns: int = 8) -> Figure:
    """Images side by side, a title under each.

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1]; C = 1, 3 or 4 (alpha, on white).
        titles: N strings; long ones are shortened.
        columns: Images in a row.

    Raises:
        UserError: another shape, or another number of titles.
    """
    _check_batch(images, "images")
    if titles is not None and len(titles) != len(images):
        raise UserError(f"titles: {len(titles)} of them for {len(images)} images; give one for each")
    width, height = size_of(images.shape[2], images.shape[3], 1.1)
    figure, axes, corners = sheet(len(images), columns, width, height, 0.17 if titles is not None else 0.0)
    for i, corner in enumerate(corners):
        place(axes, colours_of(images[i]), corner, width, height)
        if titles is not None:
            x, y = corner[0] + width / 2, corner[1] + height + 0.02
            axes.text(x, y, shorten(titles[i], max(4, int(width * 14.5))), fontsize=SMALL, ha="center", va="top")
    return figure


def filters(weight: Tensor, columns: int = 8) -> Figure:
    """The first 64 filters of a convolution on one scale: middle grey is 0 (advice A24).

    Smooth, varied patterns are those of a trained layer; noise is that of a fresh, or an overfitted, one.

    Args:
        weight: (out, in, h, w). Three input channels are drawn in colour; of any other number each channel is a picture.
        columns: Pictures in a row.
    """
    if weight.ndim != 4:
        raise UserError(f"the weight of a convolution has shape (out, in, h, w), not {tuple(weight.shape)}")
    values = weight.detach().cpu().float()
    finite = values[values.isfinite()]
    top = float(finite.abs().max()) if len(finite) else 0.0
    colour = values.shape[1] == 3
    pictures = values if colour else values.flatten(0, 1)[:, None]  # (pictures, 3 or 1, h, w)
    shown = pictures[:FILTERS]
    kind = "filters" if colour or values.shape[1] == 1 else f"filters x {values.shape[1]} input channels"
    some = f"the first {len(shown)} of " if len(shown) < len(pictures) else ""
    title = f"{some}{len(pictures)} {kind}, {weight.shape[2]}x{weight.shape[3]}; grey is 0, black to white ±{top:.2g}"
    width, height = size_of(weight.shape[2], weight.shape[3], 0.8)
    figure, axes, corners = sheet(len(shown), columns, width, height, title=title)
    for picture, corner in zip(shown, corners, strict=True):
        place(axes, colours_of(picture / (2 * top or 1) + 0.5), corner, width, height)
    return figure


def feature_maps(activation: Tensor, columns: int = 8, limit: int = 32) -> Figure:
    """What each channel of a layer gives for one image: black is its lowest value, white its highest, written below.

    Args:
        activation: (C, H, W).
        columns: Pictures in a row.
        limit: At most so many channels, the first.
    """
    if activation.ndim != 3:
        raise UserError(f"feature maps have shape (C, H, W), not {tuple(activation.shape)}")
    if limit < 1:
        raise UserError(f"limit must be 1 or more, not {limit}")
    values = activation.detach().cpu().float().nan_to_num()
    shown = values[:limit]
    some = f"the first {len(shown)} of " if len(shown) < len(values) else ""
    title = (
        f"{some}{len(values)} channels, {values.shape[1]}x{values.shape[2]}; below each: its lowest and highest value"
    )
    width, height = size_of(*values.shape[1:], 0.9)
    figure, axes, corners = sheet(len(shown), columns, width, height, 0.17, title)
    for channel, corner in zip(shown, corners, strict=True):
        low, high = float(channel.min()), float(channel.max())
        grey = (channel - low) / (high - low) if high > low else torch.zeros_like(channel)
        place(axes, colours_of(grey[None]), corner, width, height)
        words = "all 0" if low == high == 0 else f"{low:.2g} to {high:.2g}"
        axes.text(corner[0] + width / 2, corner[1] + height + 0.02, words, fontsize=6.5, ha="center", va="top")
    return figure


def mistakes(
    images: Tensor,
    true: Sequence[str],
    predicted: Sequence[str],
    losses: Sequence[float] | Tensor,
    maps: Tensor | None = None,
    columns: int = 4,
) -> Figure:
    """Images with their true and predicted class, the highest loss first (advice A25).

    Args:
        images: (N, C, H, W), uint8 or float in [0, 1].
        true: N class names.
        predicted: N class names.
        losses: N numbers.
        maps: (N, H, W) in [0, 1]: each image comes a second time with its map (Grad-CAM of the predicted class) laid over it.
        columns: Images in a row.
    """
    _check_batch(images, "images")
    losses = numbers(losses).astype(float)
    for name, values in {"true": true, "predicted": predicted, "losses": losses, "maps": maps}.items():
        if values is not None and len(values) != len(images):
            raise UserError(f"{name}: {len(values)} of them for {len(images)} images; give one for each")
    width, height = size_of(images.shape[2], images.shape[3], 1.3)
    pair = width * (1 if maps is None else 2) + (0 if maps is None else 0.03)
    cell = max(pair, 1.6)  # room for the names below
    figure, axes, corners = sheet(len(images), columns, cell, height, 0.48)
    letters = int(cell * 14.5)
    order = np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")
    for i, (x, y) in zip(order, corners, strict=True):
        picture = colours_of(images[i])
        place(axes, picture, (x, y), width, height)
        if maps is not None:
            place(axes, _overlay(picture, numbers(maps[i])), (x + width + 0.03, y), width, height)
        words = f"true {shorten(true[i], letters - 5)}\npredicted {shorten(predicted[i], letters - 10)}\nloss {losses[i]:.2f}"
        axes.text(x, y + height + 0.03, words, fontsize=SMALL, va="top", linespacing=1.15)
    return figure


def _overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A map in [0, 1] over the greyed image: dark blue where nothing speaks for the class, yellow where most does."""
    heat = np.nan_to_num(heat, nan=0.0).clip(0, 1)
    return 0.45 * picture.mean(2, keepdims=True) + 0.55 * colormaps["viridis"](heat)[..., :3]


def _check_batch(images: Tensor, name: str) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4) or 0 in images.shape:
        raise UserError(
            f"{name}: shape (N, C, H, W) with 1 or more images of 1, 3 or 4 channels, not {tuple(images.shape)}"
        )
