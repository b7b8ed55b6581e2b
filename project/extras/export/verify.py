"""`python -m project verify FILE`: replay the images that an exported file carries. Imports no torch for .onnx."""

import sys
from pathlib import Path

import numpy as np

from project.errors import UserError
from project.extras.export.metadata import read_metadata, unpack
from project.extras.export.runtime import open_exported

HELP = """Runs a few images that a .onnx or .pt2 file carries, and compares the probabilities with those recorded when it was
exported. Needs numpy and onnxruntime (or torch, for .pt2)."""
BOUND = 1e-3  # of a probability; another processor or version rounds otherwise


def verify(path: Path) -> str:
    """Run the golden images of an exported file and compare.

    Returns:
        What was found, in a line or two.

    Raises:
        UserError: when a probability is off by more than 0.001, or the file cannot run.
    """
    metadata = read_metadata(path)
    run = open_exported(path, metadata)
    try:
        images, expected = unpack(metadata["golden"]["images"]), unpack(metadata["golden"]["probabilities"])
        found = run(images)
    except Exception as error:  # zlib, base64, onnxruntime and torch each have their own
        raise UserError(f"{path} is damaged: its golden images cannot be run; copy or export it again") from error
    if found.shape != expected.shape:
        raise UserError(
            f"{path} gives outputs of shape {found.shape} where {expected.shape} were recorded: export it again"
        )
    off = np.abs(found - expected).max(axis=1)
    worst = int(off.argmax())
    if not off[worst] <= BOUND:  # not a number is off as well
        names = metadata["class_names"]
        raise UserError(
            f"{path} does not do here what it did when it was exported: golden image {worst + 1} of {len(images)} gives "
            f"{names[int(found[worst].argmax())]} {found[worst].max():.4f}, recorded was {names[int(expected[worst].argmax())]} "
            f"{expected[worst].max():.4f}; copy or export it again, or try another version of the runtime"
        )
    size = metadata["image_size"]
    return (
        f"{path}: {len(metadata['class_names'])} classes, {metadata['colour_order']} images of {size}x{size} pixels, "
        f"temperature {metadata['temperature']:.3g}\n"
        f"{len(images)} golden images: probabilities within {off[worst]:.1e} of those recorded"
    )


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit code."""
    if arguments in (["-h"], ["--help"]):
        print(f"python -m project verify FILE\n\n{HELP}")
        return 0
    try:
        if len(arguments) != 1 or arguments[0].startswith("-"):
            raise UserError("verify takes one file: python -m project verify model.onnx")
        print(verify(Path(arguments[0]).expanduser()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
