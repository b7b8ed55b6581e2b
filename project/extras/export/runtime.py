"""Run an exported file: uint8 images in, probabilities out. torch is imported for .pt2 only."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from project.errors import UserError
from project.extras.export.metadata import open_onnx

Run = Callable[[np.ndarray], np.ndarray]


def open_exported(path: Path, metadata: dict[str, Any], threads: int = 0) -> Run:
    """Open a .onnx or .pt2 file.

    Args:
        path: The file.
        metadata: What `read_metadata` found in it.
        threads: Of the onnxruntime; 0 for as many as there are cores.

    Returns:
        A function from images, uint8 (N, C, image_size, image_size), to probabilities, float32 (N, classes).

    Raises:
        UserError: for weights alone, or a damaged file.
    """
    if path.suffix == ".safetensors":
        raise UserError(f"{path} holds weights alone, which cannot run without the network: export to .onnx or .pt2")
    run = raw_onnx(path, threads) if path.suffix == ".onnx" else raw_pt2(path)
    return run if metadata["preprocess"] else _around(run, metadata)


def raw_onnx(path: Path, threads: int = 0) -> Run:
    """The graph as it is, in the onnxruntime."""
    session = open_onnx(path, threads)
    return lambda images: session.run(None, {"images": images})[0]


def raw_pt2(path: Path) -> Run:
    """The graph as it is, in torch on the CPU."""
    import torch

    try:
        module = torch.export.load(path).module()
    except Exception as error:  # torch has a different one for each kind of damage
        raise UserError(f"{path} is damaged: copy or export it again") from error

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run


def _around(run: Run, metadata: dict[str, Any]) -> Run:
    """What a graph without preprocessing leaves to its user."""
    mean, std = (np.array(metadata[key], dtype=np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    temperature = np.float32(metadata["temperature"])

    def whole(images: np.ndarray) -> np.ndarray:
        logits = run((images.astype(np.float32) / 255 - mean) / std) / temperature
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    return whole
