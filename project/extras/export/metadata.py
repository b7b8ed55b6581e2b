"""What an exported file says about itself. Needs no torch, since the machine that runs the file may have none."""

import base64
import importlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from project.errors import UserError

KEY = "image_classifier"  # of our JSON in the file's own metadata


def need(module: str) -> ModuleType:
    """Import an optional package, or raise UserError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f'{module} is not installed: run pip install -e ".[export]"') from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside means that the file is damaged: each format raises errors of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged, or not written by python -m project export: export it again") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """What an exported file says: class_names, image_size, channels, resize, mean, std, temperature, golden...

    Raises:
        UserError: when it is missing, damaged, or not written by `python -m project export`.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with reading(path):
        return json.loads(READERS[format_of(path)](path))


def format_of(path: Path) -> str:
    """.onnx, .pt2 or .safetensors; UserError for any other ending."""
    if path.suffix not in READERS:
        raise UserError(f"{path}: the name must end in .onnx, .pt2 (torch.export) or .safetensors (weights only)")
    return path.suffix


def open_onnx(model: str | bytes) -> Any:
    """An onnxruntime session on the CPU."""
    # Its fallback would print to stdout and try the same again.
    return need("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"], enable_fallback=0)


def _from_onnx(path: Path) -> str:
    return open_onnx(str(path)).get_modelmeta().custom_metadata_map[KEY]


def _from_pt2(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(f"/extra/{KEY}"))).decode()


def _from_safetensors(path: Path) -> str:
    with need("safetensors").safe_open(path, framework="numpy") as file:
        return file.metadata()[KEY]


READERS = {".onnx": _from_onnx, ".pt2": _from_pt2, ".safetensors": _from_safetensors}


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON, without loss."""
    data = base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "zlib_base64": data}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The array again."""
    content = zlib.decompress(base64.b64decode(packed["zlib_base64"]))
    return np.frombuffer(content, dtype=packed["dtype"]).reshape(packed["shape"]).copy()  # writable, as torch wants it
