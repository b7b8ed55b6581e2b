"""Classify images with an exported .onnx file. Needs Pillow, numpy and onnxruntime; nothing of this project, no torch.

    python deploy.py flowers.onnx photo.jpg another.png

Copy it into your own service: everything that the training did to an image before the network saw it is in `load`.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

GREY = 114  # of the bars that letterbox adds around an image


def load(path: str, size: int, mode: str, resize: str) -> np.ndarray:
    """Decode, turn upright, convert and resize an 8-bit JPEG, PNG, WebP...: uint8 (1, channels, size, size)."""
    with Image.open(path) as image:
        image.draft(None, (2 * size, 2 * size))  # a large JPEG is decoded smaller, as in training
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if mode != "RGBA":  # transparency is laid on white
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    image = fit(image.convert(mode), size, resize)
    pixels = np.asarray(image).reshape(size, size, -1)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]  # (H, W, C) -> (1, C, H, W)


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
        images = load(path, about["image_size"], about["colour_order"], about["resize"])
        probabilities = session.run(None, {"images": images})[0][0]
        best = int(probabilities.argmax())
        print(f"{path}\t{about['class_names'][best]}\t{probabilities[best]:.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
