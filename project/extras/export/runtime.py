"""Run an exported graph: uint8 images in, probabilities out. Imports torch for .pt2 only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from project.errors import UserError
from project.extras.export.metadata import open_onnx, reading

Run = Callable[[np.ndarray], np.ndarray]


def open_graph(path: Path, metadata: dict[str, Any]) -> Run:
    """Open a .onnx or .pt2 file.

    Args:
        path: The file.
        metadata: What `read_metadata` found in it.

    Returns:
        A function from images, uint8 (N, C, image_size, image_size), to probabilities, float32 (N, classes).

    Raises:
        UserError: for weights alone, or a damaged file.
    """
    if path.suffix == ".safetensors":
        raise UserError(f"{path} holds only weights, which cannot run without the network: export to .onnx or .pt2")
    with reading(path):
        run = _onnx(path) if path.suffix == ".onnx" else _pt2(path)
    if metadata["preprocess"]:
        return run
    return lambda images: _softmax(run(normalised(images, metadata)) / np.float32(metadata["temperature"]))


def _onnx(path: Path) -> Run:
    session = open_onnx(str(path))
    return lambda images: session.run(None, {"images": images})[0]


def _pt2(path: Path) -> Run:
    import torch

    module = torch.export.load(path).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def normalised(images: np.ndarray, metadata: dict[str, Any]) -> np.ndarray:
    """uint8 images (N, C, H, W) -> float32 with the training images' mean 0 and standard deviation 1."""
    mean, std = (np.array(metadata[key], dtype=np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    return (images.astype(np.float32) / 255 - mean) / std


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
