"""Classify images with an exported .onnx file. Needs Pillow, numpy and onnxruntime; nothing of this project, no torch.

    python deploy.py flowers.onnx photo.jpg another.png

Copy it into your own service: everything that the training did to an image before the network saw it is in `load`.
"""

import io
import json
import math
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageCms, ImageOps

GREY = 114  # of the bars that letterbox adds around an image


def load(path: str, size: int, mode: str, resize: str, value_range: tuple[float, float]) -> np.ndarray:
    """Decode, turn upright, convert and resize a JPEG, PNG, WebP, TIFF...: uint8 (1, channels, size, size)."""
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded smaller, as in training
        image.load()
        image = ImageOps.exif_transpose(image)
    profile, stored = image.info.get("icc_profile"), image.mode
    if stored[0] in "IF":  # grey, more than 8 bits: one range for all images, that of the training
        values, (low, high) = np.asarray(image, dtype=np.float64), value_range
        if low == high:  # the training had no such images: by the bits that this one uses
            high = 2.0 ** math.ceil(values.max()).bit_length() - 1 or 1.0
        values = (values - low) * 255 / (high - low)
        if not np.median(values) <= 4 * 255:
            raise ValueError(f"{path}: its values are not numbers, or far beyond {low:g} to {high:g}")
        image = Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    image = in_srgb(image, profile, stored)
    if image.mode == "RGBA" and mode != "RGBA":  # transparency is laid on white
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    image = fit(image.convert(mode), size, resize)
    pixels = np.asarray(image).reshape(size, size, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]  # (H, W, C) -> (1, C, H, W)


def in_srgb(image: Image.Image, profile: bytes | None, stored: str) -> Image.Image:
    """Convert the colours by the profile of the file, stored in that mode; one that cannot be used is left out."""
    try:
        if not profile or "sRGB" in ImageCms.getProfileDescription(io.BytesIO(profile)):
            return image
        grey = stored[0] in "1LIF" and profile[16:20] == b"GRAY"
        mode = "L" if grey else "CMYK" if stored == "CMYK" else "RGB"
        change = ImageCms.buildTransform(io.BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB")
    except ImageCms.PyCMSError:
        return image
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    image = change.apply(image.convert(mode))
    if alpha:
        image.putalpha(alpha)
    return image


def fit(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Bring an image to size x size pixels, as `data.resize` says."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    if resize == "squash":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    scale = size / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new(
        image.mode, (size, size), {"L": GREY, "RGB": (GREY,) * 3, "RGBA": (*(GREY,) * 3, 255)}[image.mode]
    )
    canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), ((size - inner[0]) // 2, (size - inner[1]) // 2))
    return canvas


def main(model: str, *paths: str) -> None:
    """Print the class and probability of each image."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["image_classifier"])
    for path in paths:
        images = load(path, *(about[key] for key in ("image_size", "colour_order", "resize", "value_range")))
        probabilities = session.run(None, {"images": images})[0][0]
        best = int(probabilities.argmax())
        print(f"{path}\t{about['class_names'][best]}\t{probabilities[best]:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
