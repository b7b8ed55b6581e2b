"""Compare what an exported file computes with the network that was trained, and name the first layer that differs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from project.extras.export.files import SCOPES, node_modules
from project.extras.export.metadata import need

Outputs = dict[str, np.ndarray]  # module -> its output, in the order of execution
FAINTEST = 1e-30  # a probability below says little about its logit: float32 runs out of digits


@dataclass(frozen=True)
class Difference:
    """Between two sets of logits.

    Attributes:
        absolute: Largest difference.
        relative: The same, over the largest logit.
        agreement: Share of images of which both name the same class.
        images: How many were compared.
    """

    absolute: float
    relative: float
    agreement: float
    images: int


def compare(logits: np.ndarray, reference: np.ndarray) -> Difference:
    """Compare logits (N, classes), each image's with their mean taken off: softmax does not see it."""
    found, expected = (
        values - values.mean(axis=1, keepdims=True) for values in (logits.astype(float), reference.astype(float))
    )
    absolute = float(np.abs(found - expected).max())
    same = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    return Difference(absolute, absolute / max(float(np.abs(expected).max()), 1e-12), same, len(found))


def logits_of(probabilities: np.ndarray, temperature: float, reference: np.ndarray) -> np.ndarray:
    """The logits that gave these probabilities, up to the constant of each image that softmax does not see.

    Those too faint to be told from the probability are taken from the reference, where that is as faint; else they count as
    the largest logit that is too faint.
    """
    visible = probabilities > FAINTEST
    logits = temperature * np.log(np.maximum(probabilities.astype(float), FAINTEST))
    best = reference.argmax(axis=1)[:, None]
    shift = np.take_along_axis(reference, best, 1) - np.take_along_axis(logits, best, 1)
    found = logits + shift
    return np.where(visible | ~np.isfinite(probabilities), found, np.minimum(found, reference))


def first_difference(found: Outputs, expected: Outputs, bound: float, skip: Sequence[str] = ()) -> str | None:
    """The first module whose output differs by more than the bound, relative to its largest value; None when none does."""
    for name, output in expected.items():
        other = found.get(name)
        if name in skip or other is None or other.shape != output.shape:
            continue
        if not np.abs(other - output).max(initial=0) <= bound * max(np.abs(output).max(initial=0), 1e-6):
            return name
    return None


def outputs_of(module: nn.Module, images: Tensor) -> Outputs:
    """What every module in it puts out."""
    outputs: Outputs = {}
    with watched(module, outputs), torch.no_grad():
        module(images)
    return outputs


@contextmanager
def watched(module: nn.Module, outputs: Outputs) -> Iterator[None]:
    """Record the outputs of all modules inside the block; of a module that is used several times, the last."""

    def record(name: str) -> object:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs.pop(name, None)
                outputs[name] = output.detach().float().cpu().numpy()

        return hook

    handles = [part.register_forward_hook(record(name)) for name, part in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outputs_in_file(path: Path, only: str | None = None) -> Callable[[np.ndarray], Outputs]:
    """Open a file so that it tells what its modules put out: the output of the last step of each.

    Args:
        path: A .onnx or .pt2 file of ours.
        only: Record this module alone.
    """
    return _outputs_of_onnx(path, only) if path.suffix == ".onnx" else _outputs_of_pt2(path, only)


def _outputs_of_onnx(path: Path, only: str | None) -> Callable[[np.ndarray], Outputs]:
    onnx, runtime = need("onnx"), need("onnxruntime")
    model = onnx.load(str(path))
    last: dict[str, str] = {}
    for node in model.graph.node:
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                last |= {name: node.output[0] for name in node_modules(entry.value) if only in (None, name)}
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(set(last.values()) - known))
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = sorted(set(last.values()))

    def run(images: np.ndarray) -> Outputs:
        values = dict(zip(names, session.run(names, {"images": images}), strict=True)) if names else {}
        return {module: values[name] for module, name in last.items()}

    return run


def _outputs_of_pt2(path: Path, only: str | None) -> Callable[[np.ndarray], Outputs]:
    graph = torch.export.load(path).module()
    outputs: Outputs = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            result = super().run_node(node)
            if isinstance(result, Tensor):
                for path, _ in node.meta.get("nn_module_stack", {}).values():
                    name = path.removeprefix("L['self'].").split("@")[0]
                    if name and only in (None, name):
                        outputs[name] = result.numpy()
            return result

    def run(images: np.ndarray) -> Outputs:
        outputs.clear()
        with torch.no_grad():
            Recorder(graph).run(torch.from_numpy(images))
        return dict(outputs)

    return run
