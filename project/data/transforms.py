"""From the raw content of an image to uint8 of one size: what every image goes through, in training and later alike."""

import io
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

Resize = Literal["letterbox", "crop", "squash"]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
GREY = 114  # of the letterbox bars: near the mean of photographs, so that the bars are no bright edge


class ImageFormat(NamedTuple):
    """What every image is brought to: pixels of a side, channels, and how other shapes are resized."""

    image_size: int
    channels: int
    resize: Resize


def open_image(content: bytes | np.ndarray) -> Image.Image:
    """The image with its size, its pixels not yet decoded."""
    if isinstance(content, np.ndarray):
        return Image.fromarray(content[..., 0] if content.shape[2:] == (1,) else content)
    return Image.open(io.BytesIO(content))


def decode(content: bytes | np.ndarray, channels: int, hint: int | None = None) -> Image.Image:
    """Decode to 8 bits, grey (1 channel), RGB (3) or RGBA (4), upright; any exception when the content is damaged.

    `content` is as of `Source.content`. Transparency is laid on white; 16-bit grey and floats keep their order of
    brightness; an animation gives its first frame. `hint` is the size wanted later: a JPEG of at least twice that size
    is then decoded at a half, quarter or eighth.
    """
    with open_image(content) as image:
        if hint:
            image.draft(None, (2 * hint, 2 * hint))
        image.load()
        image = ImageOps.exif_transpose(image)
    # Pillow's own conversion clips 16-bit images and shows what hides under transparency.
    if image.mode[0] in "IF":
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("the image has values that are not numbers")
        # Up to 65535 in 16-bit grey, else the smallest of the usual ranges that holds the values, or their maximum.
        ranges = {"I": (255.0, 65535.0), "F": (1.0, 255.0, 65535.0)}.get(image.mode, (65535.0,))
        top = values.max(initial=0)
        scale = next((limit for limit in ranges if top <= limit), top)
        image = Image.fromarray(np.clip(values * (255 / scale), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels != 4:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")  # CMYK, YCbCr, LAB, palette: not all of them convert to grey or RGBA directly
    return image.convert(MODES[channels])


def load_image(content: bytes | np.ndarray, image_size: int, channels: int, resize: Resize) -> Tensor:
    """Raw content -> uint8 (C, image_size, image_size), ready for the classifier: the whole preprocessing.

    letterbox adds grey bars; crop cuts out the middle; squash distorts. All are bilinear and antialiased.
    """
    image, square = decode(content, channels, hint=image_size), (image_size, image_size)
    if resize == "squash":
        return pil_to_tensor(image.resize(square, Image.Resampling.BILINEAR))
    if resize == "crop":
        return pil_to_tensor(ImageOps.fit(image, square, Image.Resampling.BILINEAR))
    scale = image_size / max(image.size)
    sides = [max(1, round(side * scale)) for side in image.size]
    canvas = Image.new(image.mode, square, (GREY, GREY, GREY, 255)[:channels])
    canvas.paste(image.resize(sides, Image.Resampling.BILINEAR), tuple((image_size - side) // 2 for side in sides))
    return pil_to_tensor(canvas)
