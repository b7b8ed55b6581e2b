"""From the raw content of an image to uint8 of one size: what every image goes through, in training and later alike."""

import io
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import pil_to_tensor

Resize = Literal["letterbox", "crop", "squash"]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode
MAX_PIXELS = 178_956_970  # what Pillow takes as well
GREY = 114  # of the letterbox bars: near the mean of photographs, so that the bars are no bright edge
Image.MAX_IMAGE_PIXELS = None  # Pillow has one limit for the whole process; `open_image` has the data module's


class ImageFormat(NamedTuple):
    """What every image is brought to.

    Args:
        image_size: Pixels of a side.
        channels: Grey (1), RGB (3) or RGBA (4).
        resize: How other shapes are resized.
        value_range: What becomes 0 and 255 in grey images of more than 8 bits: one range for the whole data set. Values
            between are rounded, those beyond clipped; an image that is mostly far beyond is refused. Where the two are
            equal, the highest value is that of the bits that each image uses.
        max_pixels: Of a file; one of more is taken for damaged, or for an attack on the memory.
        crop: Not to image_size, but to what random crops are cut from: a shorter side of at most 1.5 x image_size. A
            crop of 44 % of the area is then as fine as the image that it is resized to.
    """

    image_size: int
    channels: int
    resize: Resize
    value_range: Sequence[float] = (0.0, 65535.0)
    max_pixels: int = MAX_PIXELS
    crop: bool = False


def open_image(content: bytes | np.ndarray | Path, max_pixels: int) -> Image.Image:
    """The image with its size, its pixels not yet decoded."""
    if isinstance(content, np.ndarray):
        return Image.fromarray(content[..., 0] if content.shape[2:] == (1,) else content)
    image = Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width}x{image.height}: more pixels than data.max_pixels {max_pixels}")
    return image


@lru_cache(16)
def to_srgb(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colours of a profile (ICC.1:2022) to RGB as sRGB has it, for images of a mode of Pillow.

    Returns:
        None without a profile, and for one that calls itself sRGB.

    Raises:
        PyCMSError: when it is damaged, or made for another kind of image.
    """
    if not profile or "sRGB" in ImageCms.getProfileDescription(io.BytesIO(profile)):
        return None
    # Bytes 16 to 20 are the colour space of its input.
    mode = "L" if mode[0] in "1LIF" and profile[16:20] == b"GRAY" else "CMYK" if mode == "CMYK" else "RGB"
    return ImageCms.buildTransform(io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB")


def white(top: float) -> float:
    """The highest value of the bits that values up to `top` use, 2^n - 1: 4095 of 12 bits, 1 of fractions."""
    return 2.0 ** math.ceil(top).bit_length() - 1 or 1.0


def decode(content: bytes | np.ndarray, image_format: ImageFormat, hint: float | None = None) -> Image.Image:
    """Decode to 8 bits, upright, in sRGB, in the format's channels; any exception when the content is damaged.

    Transparency is laid on white; an animation gives its first frame; Pillow keeps the upper 8 bits of a colour of 16;
    a colour profile that cannot be used is left out. `content` is as of `Source.content`. `hint` is the size wanted
    later: a JPEG of at least twice that size is then decoded at a half, quarter or eighth.
    """
    with open_image(content, image_format.max_pixels) as image:
        if hint:
            image.draft(None, (2 * hint, 2 * hint))
        image.load()
        image = ImageOps.exif_transpose(image)
    profile, mode = image.info.get("icc_profile"), image.mode
    # Pillow's own conversion clips 16-bit images and shows what hides under transparency.
    if mode[0] in "IF":
        values, (low, high) = np.asarray(image, float), image_format.value_range
        if low == high:
            high = white(values.max())
        values = (values - low) * 255 / (high - low)
        if not np.median(values) <= 4 * 255:
            raise ValueError(f"its values are not numbers, or far beyond data.value_range {low:g} to {high:g}")
        image = Image.fromarray(np.uint8(np.clip(values, 0, 255).round()))
    if image.has_transparency_data:
        image = image.convert("RGBA")
    with suppress(ImageCms.PyCMSError):
        if change := to_srgb(profile, mode):
            changed = change.apply(image.convert(change.input_mode))
            if image.mode == "RGBA":
                changed.putalpha(image.getchannel("A"))
            image = changed
    if image.mode == "RGBA" and image_format.channels != 4:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in MODES.values():
        image = image.convert("RGB")  # CMYK, YCbCr, LAB, palette: not all of them convert to grey or RGBA directly
    return image.convert(MODES[image_format.channels])


def resized(image: Tensor, size: list[int]) -> Tensor:
    """uint8 (C, H, W) -> uint8 (C, *size), bilinear and antialiased.

    torch's, which takes a third of Pillow's time on images that lie as (H, W, C), as Pillow gives them.
    """
    image = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # (1, C, H, W) with the strides by which torch knows that
    return interpolate(image, size, mode="bilinear", antialias=True)[0]


def load_image(content: bytes | np.ndarray, image_format: ImageFormat) -> Tensor:
    """Raw content -> uint8 (C, image_size, image_size), ready for the classifier: the whole preprocessing.

    letterbox adds grey bars; crop cuts out the middle; squash distorts. All are bilinear and antialiased. With `crop`
    the image is (C, H, W).
    """
    if image_format.crop:
        most = image_format.image_size * 3 // 2
        image = pil_to_tensor(decode(content, image_format, most / 2))
        scale = most / min(image.shape[1:])
        return image if scale >= 1 else resized(image, [round(side * scale) for side in image.shape[1:]])
    image_size, channels, resize, *_ = image_format
    image, square = decode(content, image_format, image_size), (image_size, image_size)
    if resize == "squash":
        return pil_to_tensor(image.resize(square, Image.BILINEAR))
    if resize == "crop":
        return pil_to_tensor(ImageOps.fit(image, square, Image.BILINEAR))
    scale = image_size / max(image.size)
    sides = [max(1, round(side * scale)) for side in image.size]
    canvas = Image.new(image.mode, square, (GREY, GREY, GREY, 255)[:channels])
    canvas.paste(image.resize(sides, Image.BILINEAR), tuple((image_size - side) // 2 for side in sides))
    return pil_to_tensor(canvas)
