"""Run a written file beside the trained network: it is kept only if both compute the same."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from project.errors import UserError
from project.extras.export.metadata import need
from project.extras.export.proof import Difference, compare, first_difference, logits_of, outputs_in_file, outputs_of
from project.extras.export.runtime import raw_onnx, raw_pt2
from project.nets.deployable import Deployable

BLAMED = 16  # images for which every layer is compared
BATCH = 64


def prove(
    path: Path,
    metadata: dict[str, Any],
    deployable: Deployable,
    trained: Deployable,
    images: Tensor,
    reference: np.ndarray,
    bound: float,
) -> str:
    """Compare a file as it was written with the network as it was trained.

    Args:
        path: The file.
        metadata: What it says about itself.
        deployable: What was written.
        trained: The same without folding.
        images: uint8 (N, C, H, W).
        reference: The logits of the trained network for them, (N, classes).
        bound: Largest relative difference of the logits.

    Returns:
        What was found, in a line.

    Raises:
        UserError: when they differ by more, with the first layer that does.
    """
    found = [compare(logits, reference) for logits in _logits_in_file(path, metadata, deployable, images, reference)]
    worst = max(found, key=lambda difference: (np.isnan(difference.relative), difference.relative))
    if worst.relative <= bound:
        return f"Proof: {_words(worst)}."
    blame = _blame(path, metadata, deployable, trained, images[:BLAMED], bound)
    raise UserError(f"nothing was written: {_words(worst)}; tolerance is {bound:g}. {blame}")


def in_batches(run: Callable[[Tensor], Any], images: Tensor) -> np.ndarray:
    """Run all images: one alone, then batches, so that a file must take any number."""
    parts = [images[:1], *images[1:].split(BATCH)]
    with torch.no_grad():
        return np.concatenate([np.asarray(run(part)) for part in parts if len(part)])


def _words(difference: Difference) -> str:
    return (
        f"the logits of {difference.images} validation images differ by up to {difference.absolute:.1e} "
        f"({difference.relative:.1e} of the largest), the class is the same for {difference.agreement:.2%}"
    )


def _logits_in_file(
    path: Path, metadata: dict[str, Any], deployable: Deployable, images: Tensor, reference: np.ndarray
) -> list[np.ndarray]:
    """What the file computes: from its probabilities, and, since those can be too near 0 or 1 to tell, inside it."""
    if path.suffix == ".safetensors":
        module = copy.deepcopy(deployable)
        need("safetensors.torch").load_model(module, str(path))
        module.temperature = None
        return [in_batches(module, images)]
    run = (raw_onnx if path.suffix == ".onnx" else raw_pt2)(path)
    if not metadata["preprocess"]:
        return [in_batches(lambda part: run(_normalised(part, metadata).numpy()), images)]
    probabilities = in_batches(lambda part: run(part.numpy()), images)
    outside = logits_of(probabilities, metadata["temperature"], reference)
    inner = outputs_in_file(path, only="net")
    inside = in_batches(lambda part: inner(part.numpy()).get("net", np.zeros(0)), images)
    return (
        [outside, inside] if inside.shape == reference.shape else [outside]
    )  # other shapes: the exporter has merged its end


def _normalised(images: Tensor, metadata: dict[str, Any]) -> Tensor:
    mean, std = (torch.tensor(metadata[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    return (images / 255 - mean) / std


def _blame(
    path: Path, metadata: dict[str, Any], deployable: Deployable, trained: Deployable, images: Tensor, bound: float
) -> str:
    """In words, where the difference begins."""
    fused = outputs_of(deployable, images)
    folded = [f"net.{fold.into}" for fold in deployable.folds if fold.into]
    if name := first_difference(fused, outputs_of(trained, images), bound, skip=folded):
        return f"The first layer that differs is {name}, where the batch norm was folded."
    if path.suffix != ".safetensors":
        given = images if metadata["preprocess"] else _normalised(images, metadata)
        if name := first_difference(outputs_in_file(path)(given.numpy()), fused, bound):
            return f"The first layer that differs is {name}, as the file runs it."
    return "No single layer of these images differs by that much: a larger --tolerance may be justified."
