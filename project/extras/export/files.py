"""Write a module to a file of one of three formats, with what the file says about itself."""

import io
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
from project.extras.export.metadata import KEY, format_of, need

SCOPES = "pkg.torch.onnx.name_scopes"  # of an ONNX node: the modules it comes from
PACKAGES = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".pt2": (), ".safetensors": ("safetensors",)}


def check_packages(path: Path) -> None:
    """Before any work is done: raises UserError for an unknown format, or when a package it needs is missing."""
    for name in PACKAGES[format_of(path)]:
        need(name)


def write(module: nn.Module, images: Tensor, path: Path, metadata: dict[str, Any]) -> None:
    """Write one file.

    Args:
        module: On the CPU, in eval mode; its forward takes `images`.
        images: (2, C, H, W), uint8 or float; the file takes any number of such images.
        path: Its suffix says which format.
        metadata: What the file says about itself; plain values.

    Raises:
        UserError: when the network cannot be written in this format.
    """
    about = json.dumps(metadata)
    if path.suffix == ".safetensors":  # clones, because safetensors refuses weights that share memory
        weights = {name: value.contiguous().clone() for name, value in module.state_dict().items()}
        content = need("safetensors.torch").save(weights, {KEY: about})
    else:
        with _exporting(path):
            shapes = {"images": {0: torch.export.Dim("batch")}}
            program = torch.export.export(module, (images,), dynamic_shapes=shapes)
            for part in program.graph_module.modules():
                for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
                    node.meta.pop("stack_trace", None)  # lines of source code, with paths of this machine
            content = _onnx(program, images, about) if path.suffix == ".onnx" else _pt2(program, about)
    path.write_bytes(content)


def _pt2(program: torch.export.ExportedProgram, about: str) -> bytes:
    content = io.BytesIO()  # given a path, torch would raise RuntimeError for a full disk, and store the draft's name
    torch.export.save(program, content, extra_files={KEY: about})
    return content.getvalue()


def _onnx(program: torch.export.ExportedProgram, images: Tensor, about: str) -> bytes:
    output = "probabilities" if images.dtype == torch.uint8 else "logits"
    shapes = {"images": {0: torch.export.Dim("batch")}}
    names = {"input_names": ["images"], "output_names": [output]}
    onnx = torch.onnx.export(program, dynamo=True, verbose=False, dynamic_shapes=shapes, **names)
    for node in onnx.model.graph.all_nodes():
        for key in set(node.metadata_props) - {SCOPES}:  # lines of source code among them
            del node.metadata_props[key]
    onnx.model.metadata_props[KEY] = about
    return onnx.model_proto.SerializeToString()


@contextmanager
def _exporting(path: Path) -> Iterator[None]:
    """Silence what torch.export and torch.onnx say about their internals, and give their errors in one line."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # a graph that fails is printed, too
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the exporters have no common one
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"this network cannot be written as {path.suffix}: {reason}; .safetensors can") from error
    finally:
        logging.disable(logging.NOTSET)
