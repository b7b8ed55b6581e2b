"""Run a written file beside the checkpoint: it is kept only if both compute the same."""

import ast
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from project.errors import UserError
from project.extras.export.exported import open_exported, open_weights
from project.extras.export.files import SCOPES
from project.extras.export.metadata import need, open_onnx
from project.extras.export.runtime import normalised
from project.nets.deployable import Deployable

Outputs = dict[str, np.ndarray]  # module -> its output, in the order of execution

BATCH = 64
COMPARED = 16  # images for which every layer is compared


def prove(
    path: Path,
    metadata: dict[str, Any],
    fused: Deployable,
    trained: Deployable,
    images: np.ndarray,
    logits: np.ndarray,
    tolerance: float,
) -> str:
    """Compare a file as it was written with the network as it was trained.

    Args:
        path: The file.
        metadata: What it says about itself.
        fused: What was written.
        trained: The same without folding.
        images: uint8 (N, C, H, W).
        logits: Of the trained network for them, (N, outputs).
        tolerance: Largest difference of the logits, relative to the largest of them, and of the probabilities.

    Returns:
        What was found, in a line.

    Raises:
        UserError: when they differ by more, with the first layer that does.
    """
    given = images if metadata["preprocess"] else normalised(images, metadata)
    network = open_layers(path, metadata, only="net")  # probabilities near 0 or 1 would hide a difference
    inside = relative_difference(in_batches(lambda part: network(part)["net"], given), logits)
    found = in_batches(open_exported(path, metadata), images)
    expected = trained.probabilities(torch.from_numpy(logits) / trained.temperature).numpy()
    outside = float(np.abs(found - expected).max())
    same = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    words = (
        f"the logits of {len(images)} validation images differ by up to {inside:.1e} of the largest, their "
        f"probabilities by up to {outside:.1e}; the predicted class is the same for {same:.2%}"
    )
    if inside <= tolerance and outside <= tolerance:  # NaN is not
        return f"Proof: {words}."
    written = outputs_of(fused, images[:COMPARED])
    checkpoint = outputs_of(trained, images[:COMPARED])
    for fold in fused.folds:  # the layer that took a norm in gives what the norm gave
        checkpoint.pop(f"net.{fold.into}", None)
    layer = first_difference(written, checkpoint, tolerance)
    layer = layer or first_difference(open_layers(path, metadata)(given[:COMPARED]), written, tolerance)
    why = f"the first layer that differs is {layer}" if layer else "no single layer differs by that much"
    raise UserError(f"nothing was written: {words}; tolerance is {tolerance:g}; {why}")


def in_batches(run: Callable[[np.ndarray], Any], images: np.ndarray) -> np.ndarray:
    """Run all images: one alone, then batches, so that a file must take any number."""
    parts = [images[:1], *(images[i : i + BATCH] for i in range(1, len(images), BATCH))]
    with torch.no_grad():
        return np.concatenate([np.asarray(run(part)) for part in parts])


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, over the largest expected value."""
    return float(np.abs(found - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-6))


def first_difference(found: Outputs, expected: Outputs, bound: float) -> str | None:
    """The first module whose outputs differ by more than the bound, of those that both sides have."""
    for name, output in expected.items():
        comparable = name in found and found[name].shape == output.shape
        if comparable and not relative_difference(found[name], output) <= bound:  # NaN differs as well
            return name
    return None


def outputs_of(module: nn.Module, images: np.ndarray, only: str | None = None) -> Outputs:
    """What every module in it (or only that one) puts out; of a module that is called several times, the last."""
    outputs: Outputs = {}

    def record(name: str, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.pop(name, None)
            outputs[name] = output.float().numpy()

    handles = []
    for path, part in module.named_modules():
        name = re.sub(r"@\d+", "", path)  # torch.export.unflatten numbers further calls of a module
        if name and only in (None, name):
            handles.append(part.register_forward_hook(partial(record, name)))
    try:
        with torch.no_grad():
            module(torch.from_numpy(images))
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def open_layers(path: Path, metadata: dict[str, Any], only: str | None = None) -> Callable[[np.ndarray], Outputs]:
    """Open an exported file so that it gives what its modules (or only that one) put out, see `outputs_of`."""
    if path.suffix == ".pt2":
        return partial(outputs_of, torch.export.unflatten(torch.export.load(path)), only=only)
    if path.suffix == ".safetensors":
        return partial(outputs_of, open_weights(path, metadata), only=only)
    onnx = need("onnx")
    model = onnx.load(str(path))
    last: dict[str, str] = {}  # module -> the output of its last node
    for node in model.graph.node:
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                modules = ast.literal_eval(entry.value)[1:-1]  # without the whole and the node
                last |= {name: node.output[0] for name in modules if only in (None, name)}
    names = set(last.values())
    new = names - {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
    session = open_onnx(model.SerializeToString())

    def run(images: np.ndarray) -> Outputs:
        values = dict(zip(names, session.run(list(names), {"images": images}), strict=True))
        return {module: values[name] for module, name in last.items()}

    return run
