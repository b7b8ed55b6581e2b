"""Write a module to a file of one of three kinds, with what the file says about itself."""

import ast
import io
import itertools
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from project.errors import UserError
from project.extras.export.metadata import KEY, need

SCOPES = "pkg.torch.onnx.name_scopes"  # of an ONNX node: the modules it comes from


def write(module: nn.Module, images: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    """Write one file.

    Args:
        module: On the CPU, in eval mode.
        images: What it takes, (2, C, H, W); the file takes any number of images of that size.
        path: Its suffix says which kind.
        metadata: What the file says about itself; plain values.

    Raises:
        UserError: when a package is missing, or the network cannot be written so.
    """
    {".onnx": _write_onnx, ".pt2": _write_pt2, ".safetensors": _write_safetensors}[path.suffix](
        module, images, path, json.dumps(metadata)
    )


def check_packages(suffix: str) -> None:
    """Raises UserError when a package is missing that this kind of file needs; before any work is done."""
    for name in {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": (), ".safetensors": ("safetensors",)}[suffix]:
        need(name)


def _graph(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    with _silence():
        return torch.export.export(module, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}})


def _write_pt2(module: nn.Module, images: Tensor, path: Path, metadata: str) -> None:
    with _one_line("torch.export"), _silence():
        content = io.BytesIO()  # torch's own writer calls a full disk a RuntimeError, and notes the name of the draft
        program = _graph(module, images)
        for part in program.graph_module.modules():  # lines of source code, with paths of this machine
            for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        torch.export.save(program, content, extra_files={KEY: metadata})
        path.write_bytes(content.getbuffer())


def _write_onnx(module: nn.Module, images: Tensor, path: Path, metadata: str) -> None:
    onnx = need("onnx")
    need("onnxscript")
    with _one_line("ONNX"), _silence():
        names = {
            "input_names": ["images"],
            "output_names": ["probabilities" if images.dtype == torch.uint8 else "logits"],
        }
        graph = _graph(module, images)
        shapes = {"dynamic_shapes": {"images": {0: torch.export.Dim("batch")}}}
        model = torch.onnx.export(graph, dynamo=True, verbose=False, **names, **shapes).model_proto
        for node in _nodes(
            model.graph.node, *(function.node for function in model.functions)
        ):  # what else is noted there: lines of source code, and paths of this machine
            scopes = [entry for entry in node.metadata_props if entry.key == SCOPES]
            del node.metadata_props[:]
            node.metadata_props.extend(scopes)
        onnx.helper.set_model_props(model, {KEY: metadata})
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString())


def _nodes(*groups: Any) -> Iterator[Any]:
    """All nodes of an ONNX graph, those inside its conditions and loops too."""
    for node in itertools.chain(*groups):
        yield node
        yield from _nodes(*(graph.node for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)))


def _write_safetensors(module: nn.Module, images: Tensor, path: Path, metadata: str) -> None:
    need("safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    path.touch()
    mode = path.stat().st_mode  # as of any new file; safetensors makes its own readable to the owner alone
    try:
        save_model(module, str(path), metadata={KEY: metadata})
    except SafetensorError as error:  # a full disk, for one
        raise OSError(" ".join(str(error).split())) from error
    path.chmod(mode)


def node_modules(scopes: str) -> list[str]:
    """The modules that an ONNX node is part of, outermost first, from its metadata."""
    return ast.literal_eval(scopes)[1:-1]


@contextmanager
def _silence() -> Iterator[None]:
    """torch.export and torch.onnx talk about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # a graph that fails is printed, too
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _one_line(kind: str) -> Iterator[None]:
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # the exporters have no common one
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"this network cannot be written as {kind}: {reason[:200]}; .safetensors keeps its weights"
        ) from error
