"""What the figures share: colours that the colour-blind can tell apart, sheets of small pictures, pixels for TensorBoard."""

import warnings

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from project.errors import UserError

# Okabe & Ito 2008, without the yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", "--", ":")  # the second and third time a colour is used
SMALL = 7.5  # points
GAP = 0.08  # inches between small pictures


def style(i: int) -> dict[str, str]:
    """Colour and line of the i-th curve."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}


def shorten(text: str, length: int = 24) -> str:
    """At most that many characters; what is left out of the middle is a dot-dot-dot, because names differ at both ends."""
    text = str(text).replace("$", r"\$").replace("\n", " ")  # a dollar would begin a formula
    if len(text) <= length:
        return text
    front = (length - 1) // 2 + (length - 1) % 2
    return text[:front] + "…" + text[len(text) - (length - 1 - front) :]


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """The figure as uint8 (H, W, 3), as TensorBoard's `add_image` takes it with dataformats="HWC"."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():  # of letters that the font lacks; they are boxes (docs/look.md)
        warnings.filterwarnings("ignore", message=".*Glyph .* missing from")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def numbers(values: object) -> np.ndarray:
    """A tensor (on any device, of any float type) or numbers, as a numpy array."""
    tensor = torch.as_tensor(values).detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def colours_of(image: Tensor) -> np.ndarray:
    """(C, H, W) uint8, or float in [0, 1], with C = 1, 3 or 4 (alpha) -> (H, W, 3) in [0, 1]; what is not finite becomes black.

    Raises:
        UserError: another number of channels.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4):
        raise UserError(f"a picture has shape (C, H, W) with 1, 3 or 4 channels, not {tuple(image.shape)}")
    values = image.detach().cpu().float() / (255 if image.dtype == torch.uint8 else 1)
    values = values.nan_to_num(0, 1, 0).clamp(0, 1)
    if len(values) == 4:
        alpha = values[3:]
        values = values[:3] * alpha + (1 - alpha)
    return values.expand(3, -1, -1).permute(1, 2, 0).numpy()


def sheet(
    count: int, columns: int, width: float, height: float, below: float = 0.0, title: str = ""
) -> tuple[Figure, Axes, list]:
    """An empty sheet in inches for `count` pictures: one axes for all, because one for each would take a hundred times as long.

    Args:
        count: Pictures.
        columns: At most so many in a row.
        width: Of each, in inches.
        height: Of each.
        below: Room for text under each.
        title: Of the sheet.

    Returns:
        Figure, axes, and the upper left corners (x, y) of the pictures.
    """
    if columns < 1:
        raise UserError(f"columns must be 1 or more, not {columns}")
    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    top = 0.35 if title else GAP
    across, down = columns * (width + GAP) + GAP, rows * (height + below + GAP) + top
    full = max(across, 0.075 * len(title) + 0.2)  # so that a title over one picture fits
    figure = Figure(figsize=(full, down), layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, full), ylim=(down, 0))
    axes.axis("off")
    if title:
        axes.text(GAP, 0.2, title, fontsize=9, va="center")
    corners = [(GAP + i % columns * (width + GAP), top + i // columns * (height + below + GAP)) for i in range(count)]
    return figure, axes, corners


def place(
    axes: Axes, picture: np.ndarray, corner: tuple[float, float], width: float, height: float, **options: object
) -> None:
    """Put a picture, (H, W) or (H, W, 3), on a sheet; its pixels stay square blocks."""
    x, y = corner
    # Small enough for its place, because matplotlib resamples all pixels of each.
    step = max(1, min(picture.shape[0], picture.shape[1]) // 512)
    bounds = axes.get_xlim(), axes.get_ylim()
    small = picture[::step, ::step]
    interpolation = "nearest" if max(small.shape[:2]) < 100 * max(width, height) else "antialiased"
    axes.imshow(small, extent=(x, x + width, y + height, y), aspect="auto", interpolation=interpolation, **options)
    axes.set(xlim=bounds[0], ylim=bounds[1])


def size_of(height: int, width: int, side: float) -> tuple[float, float]:
    """Width and height in inches of a picture of those pixels whose longer side is `side`; a strip is made 8 to 1."""
    longer = max(height, width, 1)
    return side * max(width / longer, 1 / 8), side * max(height / longer, 1 / 8)
