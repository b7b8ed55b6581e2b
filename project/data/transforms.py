"""From the raw content of an image to uint8 of one size: what every image goes through, in training and in use alike."""

import io
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from project.errors import UserError

Resize = Literal["letterbox", "crop", "squash"]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
GREY = 114  # of the letterbox bars: near the mean of photographs, so that the bars are no bright edge


def check_format(image_size: int | None, channels: int, resize: str) -> None:
    """Raises UserError when a key of the image format is out of range."""
    if image_size is not None and image_size < 1:
        raise UserError(f"data.image_size must be 1 pixel or more, not {image_size}")
    if channels not in MODES:
        raise UserError(f"data.channels must be 1 (grey), 3 (colour) or 4 (colour and alpha), not {channels}")
    if resize not in get_args(Resize):
        raise UserError(f"data.resize must be one of {', '.join(get_args(Resize))}, not {resize!r}")


def decode(content: bytes | np.ndarray, channels: int, hint: int | None = None) -> Image.Image:
    """Decode to 8 bits with `channels` channels, upright.

    Transparency is laid on white; 16-bit grey and floats keep their order of brightness; an animation gives its first frame.

    Args:
        content: Bytes of a file, or a uint8 array (H, W) or (H, W, C).
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        hint: The size that is wanted later. A JPEG of at least twice that size is then decoded at a half, quarter or eighth.

    Raises:
        Exception: of any kind, when the content is damaged; Pillow's decoders have no common one.
    """
    if isinstance(content, np.ndarray):
        return to_mode(Image.fromarray(content[..., 0] if content.shape[2:] == (1,) else content), channels)
    with Image.open(io.BytesIO(content)) as image:
        if hint is not None:
            image.draft(None, (2 * hint, 2 * hint))
        image.load()
        return to_mode(ImageOps.exif_transpose(image), channels)


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Convert any of Pillow's modes; its own conversion clips 16-bit images and shows what hides under transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    mode = MODES[channels]
    if image.mode == mode == "RGBA":
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")  # CMYK, YCbCr, LAB, palette: not all of them convert to grey or RGBA directly
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits by 255 / 65535; 32-bit and floats by their range: up to 1, 255, 65535, or else their maximum."""
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the image has values that are not numbers")
    top = values.max(initial=0)
    if image.mode.startswith("I;16"):
        scale = 65535.0
    else:
        scale = next((limit for limit in (1.0 if image.mode == "F" else 255.0, 255.0, 65535.0) if top <= limit), top)
    return Image.fromarray(np.clip(values * (255 / scale), 0, 255).astype(np.uint8))


def resize_to(image: Image.Image, size: int, how: Resize) -> Image.Image:
    """Bring an image to size x size pixels (bilinear, antialiased).

    letterbox keeps the whole image and its proportions and fills up with grey bars; crop scales the shorter side and cuts the
    middle out, so it loses the ends of a long image; squash scales both sides and loses the proportions.
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    if how == "squash":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if how == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = image.resize(inner, Image.Resampling.BILINEAR)
    fill = {"L": GREY, "RGB": (GREY,) * 3, "RGBA": (GREY, GREY, GREY, 255)}[image.mode]
    canvas = Image.new(image.mode, (size, size), fill)
    canvas.paste(small, ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return canvas


def to_tensor(image: Image.Image) -> Tensor:
    """Pillow image -> uint8 (C, H, W)."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)  # (H, W, C) -> (C, H, W)


def load_image(content: bytes | np.ndarray, image_size: int, channels: int, resize: Resize) -> Tensor:
    """Raw content -> uint8 (C, image_size, image_size), ready for the classifier: the whole preprocessing.

    Raises:
        Exception: of any kind, when the content is damaged.
    """
    return to_tensor(resize_to(decode(content, channels, hint=image_size), image_size, resize))


def random_resized_box(width: int, height: int, area: float, log_ratio: float, x: float, y: float) -> tuple[float, ...]:
    """The box of a random resized crop (Szegedy et al. 2014, arXiv:1409.4842, section 6) from four draws.

    Args:
        width: Of the image, pixels.
        height: Of the image, pixels.
        area: Share of the image's area to keep, above 0 to 1.
        log_ratio: Natural logarithm of the box's width over its height.
        x: Where between the left (0) and the right (1) end the box lies.
        y: Where between the top (0) and the bottom (1) end the box lies.

    Returns:
        left, top, right, bottom in pixels, inside the image; a box that would stick out is shortened.
    """
    ratio = float(np.exp(log_ratio))
    box_width = min(width, (area * width * height * ratio) ** 0.5)
    box_height = min(height, (area * width * height / ratio) ** 0.5)
    left, top = x * (width - box_width), y * (height - box_height)
    return left, top, left + box_width, top + box_height
