"""`python -m project verify FILE`: run the golden images that an exported file carries. Imports no torch for .onnx."""

from pathlib import Path

import numpy as np

from project.errors import UserError
from project.extras.export.metadata import read_metadata, reading, unpack
from project.extras.export.runtime import open_graph

BOUND = 1e-3  # of a probability: another processor or version rounds differently


def verify_file(path: Path) -> str:
    """Run the golden images of an exported file and compare with what was recorded.

    Returns:
        What was found, in two lines.

    Raises:
        UserError: when a probability differs by more than 0.001, or the file cannot run.
    """
    metadata = read_metadata(path)
    with reading(path):
        names, size, colours = (metadata[key] for key in ("class_names", "image_size", "colour_order"))
        images, expected = (unpack(metadata["golden"][key]) for key in ("images", "probabilities"))
        found = open_graph(path, metadata)(images)
        off = np.abs(found - expected).max(axis=1)
    worst = int(off.argmax())
    if not off[worst] <= BOUND:  # NaN differs as well
        given, recorded = (f"{names[int(p[worst].argmax())]} {p[worst].max():.4f}" for p in (found, expected))
        raise UserError(
            f"{path} does not compute here what it did when it was exported: golden image {worst + 1} of {len(images)} "
            f"gives {given}, recorded was {recorded}; copy or export it again, or try another version of the runtime"
        )
    return (
        f"{path}: {len(names)} classes, {colours} images of {size}x{size} pixels, "
        f"temperature {metadata['temperature']:.3g}\n"
        f"{len(images)} golden images: probabilities within {off[worst]:.1e} of those recorded"
    )
