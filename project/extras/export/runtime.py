"""Read, run and verify exported files. Imports no torch for .onnx: the machine that runs the file may have none."""

import base64
import importlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from project.errors import UserError

Run = Callable[[np.ndarray], np.ndarray]

KEY = "image_classifier"  # of our JSON in the file's own metadata
BOUND = 1e-3  # of a probability: another processor or version rounds differently


def need(module: str) -> ModuleType:
    """Import a package, or raise UserError with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f'{error.name} is not installed: run pip install -e ".[export]"') from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside means that the file is damaged: each format raises errors of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged, or not written by python -m project export: export it again") from error


def format_of(path: Path) -> str:
    """.onnx, .pt2 or .safetensors; UserError for any other ending."""
    if path.suffix not in (".onnx", ".pt2", ".safetensors"):
        raise UserError(f"{path}: the name must end in .onnx, .pt2 (torch.export) or .safetensors (weights only)")
    return path.suffix


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file says about itself: class_names, image_size, channels, resize, mean, std, temperature, golden...

    Raises:
        UserError: when the file is missing, damaged, or not written by `python -m project export`.
    """
    suffix = format_of(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is not a file")
    with reading(path):
        if suffix == ".onnx":
            return json.loads(open_onnx(str(path)).get_modelmeta().custom_metadata_map[KEY])
        if suffix == ".safetensors":
            with need("safetensors").safe_open(path, framework="numpy") as file:
                return json.loads(file.metadata()[KEY])
        with zipfile.ZipFile(path) as archive:  # without torch, which takes seconds
            return json.loads(archive.read(next(n for n in archive.namelist() if n.endswith(f"/extra/{KEY}"))))


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON, without loss."""
    data = base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()
    return {"shape": array.shape, "dtype": str(array.dtype), "zlib_base64": data}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The array again."""
    content = zlib.decompress(base64.b64decode(packed["zlib_base64"]))
    return np.frombuffer(content, dtype=packed["dtype"]).reshape(packed["shape"]).copy()  # writable, as torch wants it


def open_onnx(model: str | bytes) -> Any:
    """An onnxruntime session on the CPU."""
    # Its fallback would print to stdout and try the same again.
    return need("onnxruntime").InferenceSession(model, providers=["CPUExecutionProvider"], enable_fallback=0)


def open_exported(path: Path) -> Run:
    """A file of any format as a function: images, uint8 (N, C, size, size) -> probabilities, float32 (N, outputs).

    Raises:
        UserError: when it is damaged, or a package is missing.
    """
    metadata = read_metadata(path)
    with reading(path):
        run = _onnx(path) if path.suffix == ".onnx" else _torch(path)
    if metadata["preprocess"]:
        return run
    mean, std = (np.array(metadata[key], dtype=np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))

    def around(images: np.ndarray) -> np.ndarray:
        logits = run((images.astype(np.float32) / 255 - mean) / std) / np.float32(metadata["temperature"])
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    return around


def _onnx(path: Path) -> Run:
    session = open_onnx(str(path))
    return lambda images: session.run(None, {"images": images})[0]


def _torch(path: Path) -> Run:
    torch = need("torch")
    if path.suffix == ".pt2":
        module = torch.export.load(path).module()
    else:
        module = need("project.extras.export.exported").open_weights(path)
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def verify_file(path: Path) -> str:
    """Run the golden images of an exported file and compare with what was recorded; returns what was found.

    Raises:
        UserError: when a probability differs by more than 0.001, or the file cannot run.
    """
    with reading(path):
        metadata = read_metadata(path)
        images, expected = (unpack(metadata["golden"][key]) for key in ("images", "probabilities"))
        off = np.abs(open_exported(path)(images) - expected).max(axis=1)
        worst = off.argmax()  # NaN counts as the largest
        if not off[worst] <= BOUND:
            raise UserError(
                f"{path} does not compute here what it did when it was exported: a probability of golden image "
                f"{worst + 1} of {len(images)} differs by {off[worst]:.4f}; copy or export it again, or try another "
                "version of the runtime"
            )
        return (
            f"{path}: {len(metadata['class_names'])} classes, {metadata['colour_order']} images of "
            f"{metadata['image_size']} pixels, temperature {metadata['temperature']:.3g}\n"
            f"{len(images)} golden images: probabilities within {off[worst]:.1e} of those recorded"
        )
