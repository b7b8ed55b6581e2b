"""Run a written file beside the checkpoint: it is kept only if both compute the same."""

import ast
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from project.classifier import ImageClassifier
from project.errors import UserError
from project.extras.export.exported import open_weights
from project.extras.export.runtime import need, open_exported, open_onnx, read_metadata
from project.nets.deployable import Deployable

Outputs = dict[str, np.ndarray]  # module -> its output, in the order of execution

SCOPES = "pkg.torch.onnx.name_scopes"  # of an ONNX node: the modules it comes from
BATCH = 64
COMPARED = 16  # images for which every layer is compared


def prove(
    path: Path, fused: Deployable, trained: ImageClassifier, images: np.ndarray, logits: np.ndarray, tolerance: float
) -> str:
    """Compare a file as it was written with the classifier as it was trained; returns what was found, in a line.

    Args:
        path: The file.
        fused: What was written.
        trained: The checkpoint's classifier.
        images: uint8 (N, C, H, W).
        logits: The classifier's for them, (N, outputs).
        tolerance: Largest difference of the logits, relative to the largest of them, and of the probabilities.

    Raises:
        UserError: when they differ by more, with the first layer that does.
    """
    given = images
    if not read_metadata(path)["preprocess"]:
        given = trained.normalise(torch.from_numpy(images)).numpy()
    network = open_layers(path, only="net")  # probabilities near 0 or 1 would hide a difference
    # What it gives for the images, and with tta for their mirrors behind them.
    off = relative_difference(
        in_batches(lambda part: network(part)["net"].reshape(-1, len(part), logits.shape[1]).mean(0), given), logits
    )
    found = in_batches(open_exported(path), images)
    expected = fused.probabilities(torch.from_numpy(logits) / fused.temperature).numpy()
    shift = np.abs(found - expected).max()
    words = (
        f"the logits of {len(images)} images differ by up to {off:.1e} of the largest, "
        f"the probabilities by up to {shift:.1e}"
    )
    if off <= tolerance and shift <= tolerance:  # NaN is not
        return f"Proof: {words}."
    written, checkpoint = (outputs_of(module, images[:COMPARED]) for module in (fused, trained))
    for fold in fused.folds:  # the layer that took in a norm gives what the norm gave, and so do poolings between them
        checkpoint.pop(f"net.{fold.into}", None)
    for name, module in trained.named_modules():
        if isinstance(module, nn.MaxPool2d):
            checkpoint.pop(name, None)
    layer = first_difference(written, checkpoint, tolerance)
    layer = layer or first_difference(open_layers(path)(given[:COMPARED]), written, tolerance)
    raise UserError(f"nothing was written: {words}; tolerance is {tolerance:g}; first layer that differs: {layer}")


def in_batches(run: Callable[[np.ndarray], Tensor | np.ndarray], images: np.ndarray) -> np.ndarray:
    """Run all images: one alone, then batches, so that a file must take any number."""
    parts = np.split(images, range(1, len(images), BATCH))
    with torch.no_grad():
        return np.concatenate([np.asarray(run(part)) for part in parts])


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, over the largest expected value."""
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))


def first_difference(found: Outputs, expected: Outputs, bound: float) -> str | None:
    """The first module whose outputs differ by more than the bound, of those that both sides have."""
    for name, output in expected.items():
        comparable = name in found and found[name].shape == output.shape
        if comparable and not relative_difference(found[name], output) <= bound:  # NaN differs as well
            return name
    return None


def outputs_of(module: nn.Module, images: np.ndarray, only: str | None = None) -> Outputs:
    """What every module in it (or only that one) puts out; of a module that is called several times, the last."""
    # torch.export.unflatten numbers further calls of a module.
    names = {part: re.sub(r"@\d+", "", name) for name, part in module.named_modules() if name}
    outputs: Outputs = {}

    def record(part: nn.Module, _inputs: object, output: object) -> None:
        name = names.get(part)
        if name and only in (None, name) and isinstance(output, Tensor):
            outputs.pop(name, None)
            outputs[name] = output.float().numpy()

    with register_module_forward_hook(record), torch.no_grad():
        module(torch.from_numpy(images))
    return outputs


def open_layers(path: Path, only: str | None = None) -> Callable[[np.ndarray], Outputs]:
    """Open an exported file so that it gives what its modules (or only that one) put out, see `outputs_of`."""
    if path.suffix == ".safetensors":
        return partial(outputs_of, open_weights(path), only=only)
    if path.suffix == ".pt2":
        return partial(outputs_of, torch.export.unflatten(torch.export.load(path)), only=only)
    onnx = need("onnx")
    model = onnx.load(str(path))
    last: dict[str, str] = {}  # module -> the output of its last node
    for node in model.graph.node:
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                modules = ast.literal_eval(entry.value)[1:-1]  # without the whole and the node
                last |= {name: node.output[0] for name in modules if only in (None, name)}
    new = set(last.values()) - {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in new)
    session = open_onnx(model.SerializeToString())
    return lambda images: dict(zip(last, session.run(list(last.values()), {"images": images}), strict=True))
