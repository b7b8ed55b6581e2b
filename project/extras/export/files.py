"""Write a module to a file of one of three formats, with what the file says about itself."""

import io
import json
import logging
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from project.errors import UserError
from project.extras.export.runtime import KEY, need

LOWEST, HIGHEST = 18, 25  # opsets that torch 2.14 writes and onnxruntime 1.32 reads; it reads 18 since 1.14


def write(module: nn.Module, images: Tensor, path: Path, metadata: dict[str, Any], opset: int | None = None) -> None:
    """Write one file.

    Args:
        module: On the CPU, in eval mode; its forward takes `images`.
        images: (2, C, H, W), uint8 or float; the file takes any number of such images.
        path: Its suffix says which format.
        metadata: What the file says about itself; plain values.
        opset: Of .onnx; None takes the lowest that torch writes.

    Raises:
        UserError: when the network cannot be written in this format, or with this opset.
    """
    if opset and (path.suffix != ".onnx" or opset > HIGHEST):
        raise UserError(f"opset is for .onnx, {LOWEST} to {HIGHEST}: not {opset} for {path.suffix}")
    about = json.dumps(metadata)
    if path.suffix == ".safetensors":  # clones, because safetensors refuses weights that share memory
        weights = {name: value.contiguous().clone() for name, value in module.state_dict().items()}
        path.write_bytes(need("safetensors.torch").save(weights, {KEY: about}))
        return
    content = io.BytesIO()  # given a path, torch would store the draft's name
    logging.disable(logging.WARNING)  # torch talks about its internals, and prints a graph that fails
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            shapes = {"images": {0: torch.export.Dim("batch")}}
            program = torch.export.export(module, (images,), dynamic_shapes=shapes)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # lines of source code, with paths of this machine
            if path.suffix == ".onnx":
                output = "probabilities" if images.dtype == torch.uint8 else "logits"
                onnx = torch.onnx.export(
                    program, input_names=["images"], output_names=[output], opset_version=opset or LOWEST, verbose=False
                )
                onnx.model.metadata_props[KEY] = about
                proto = onnx.model_proto
                if opset not in (None, proto.opset_import[0].version):
                    raise ValueError(f"opset {opset} is not possible, {LOWEST} to {HIGHEST} may be")
                # torch marks every file as one of the newest format, which older runtimes refuse.
                proto.ir_version = need("onnx.helper").find_min_ir_version_for(proto.opset_import)
                content.write(proto.SerializeToString())
            else:
                torch.export.save(program, content, extra_files={KEY: about})
    except Exception as error:  # the exporters have no common one
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"this network cannot be written as {path.suffix}, but as .safetensors: {reason}") from error
    finally:
        logging.disable(logging.NOTSET)
    path.write_bytes(content.getbuffer())
