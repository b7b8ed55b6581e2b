"""What an exported file says about itself. Read without torch, since the machine that runs the file may have none."""

import base64
import importlib
import json
import struct
import zipfile
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from project.errors import UserError

KEY = "image_classifier"  # of our JSON among the file's own metadata
SUFFIXES = (".onnx", ".pt2", ".safetensors")
REQUIRED = {
    "class_names",
    "image_size",
    "channels",
    "colour_order",
    "resize",
    "preprocess",
    "mean",
    "std",
    "temperature",
    "golden",
}
HEADER_LIMIT = 100_000_000  # bytes; the format's own


def need(module: str, extra: str = "export") -> ModuleType:
    """Import an optional package.

    Raises:
        UserError: with what to install, when it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f'{module} is not installed: run pip install -e ".[{extra}]"') from error


def suffix_of(path: Path) -> str:
    """The kind of file.

    Raises:
        UserError: for a suffix that is none of ours.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path}: its name must end in .onnx, .pt2 (torch.export) or .safetensors (weights), not in {path.suffix!r}"
        )
    return path.suffix


def read_metadata(path: Path) -> dict[str, Any]:
    """What an exported file says about itself: class_names, image_size, channels, resize, mean, std, temperature, golden...

    Raises:
        UserError: when it is missing, damaged, or not written by `python -m project export`.
    """
    read = {".onnx": _from_onnx, ".pt2": _from_pt2, ".safetensors": _from_safetensors}[suffix_of(path)]
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        text = read(path)
    except UserError:
        raise
    except Exception as error:  # each reader has its own kinds
        raise UserError(f"{path} is damaged, or no {path.suffix} file: copy or export it again") from error
    try:
        about = json.loads(text)
    except (TypeError, ValueError):
        about = None
    if not isinstance(about, dict) or not set(about) >= REQUIRED:
        raise UserError(f"{path} was not written by python -m project export: it does not say what it classifies")
    return about


def open_onnx(path: Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU; 0 threads for as many as there are cores."""
    runtime = need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # what is wrong is raised as well
    # Its fallback would print to stdout, and try the same again.
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _from_onnx(path: Path) -> str | None:
    return open_onnx(path, threads=1).get_modelmeta().custom_metadata_map.get(KEY)


def _from_pt2(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")]
        return archive.read(names[0]).decode() if names else None


def _from_safetensors(path: Path) -> str | None:
    """The file begins with the length of its header, 8 bytes, and the header, JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > HEADER_LIMIT:
            raise ValueError("no header")
        header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        if path.stat().st_size < 8 + length + end:
            raise ValueError("cut off")
    return header.get("__metadata__", {}).get(KEY)


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON, without loss."""
    data = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "zlib_base64": data}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The array again."""
    content = zlib.decompress(base64.b64decode(packed["zlib_base64"]))
    return np.frombuffer(content, dtype=packed["dtype"]).reshape(packed["shape"]).copy()  # writable, as torch wants it
