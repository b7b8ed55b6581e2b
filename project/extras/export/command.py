"""`python -m project export` and `verify`, and exported files in the place of a checkpoint for `predict`."""

from pathlib import Path
from typing import Any

from jsonargparse.typing import OpenUnitInterval, PositiveInt

from project.commands import TRAINING_ONLY, Command, Opener


def export(
    trainer: Any,
    model: Any,
    datamodule: Any,
    ckpt_path: str,
    out: str = "model.onnx",
    preprocess: bool = True,
    calibrate: bool = True,
    tolerance: OpenUnitInterval = 1e-4,
    speed: bool = True,
    opset: PositiveInt | None = None,
) -> None:
    """Write a file that runs without this project, its batch norms folded, once it is proven to compute the same.

    Where the images of the training are not at hand, it is proven on made ones, and nothing is calibrated.

    Args:
        ckpt_path: The checkpoint: a path, or best or last of the newest run.
        out: The file to write: .onnx, .pt2 (torch.export) or .safetensors (only the fused weights).
        preprocess: Put normalisation, temperature and softmax into the file: uint8 images in, probabilities out. False:
            normalised float32 images in, logits out.
        calibrate: Fit a temperature on the validation images, so that predictions of probability 0.8 are right in about
            80 of 100 cases; what error is left is printed. It is kept in the checkpoint too. False: leave the
            probabilities as they are.
        tolerance: Largest difference between the logits of file and checkpoint, relative to the largest logit, and
            between their probabilities; above it, nothing is written.
        opset: Version of ONNX's operators; null takes the lowest that torch writes, 18, which
            onnxruntime reads since 1.14 (2023).
        speed: Measure how fast the model runs on this machine, unfused, fused and exported; usually under a minute.
    """
    from project.extras.export.make import export_checkpoint

    export_checkpoint(trainer, model, datamodule, ckpt_path, out, preprocess, calibrate, tolerance, speed, opset)


def verify(file: str) -> None:
    """Run the images that an exported file carries and compare the probabilities with those recorded at export.

    Exit code 2 when one differs by more than 0.001, or the file is damaged.

    Args:
        file: What `export` has written; .onnx needs numpy and onnxruntime, .pt2 torch, .safetensors this project.
    """
    from project.extras.export.runtime import verify_file

    print(verify_file(Path(file)))


def read(path: Path) -> dict[str, Any]:
    """What stands in for a checkpoint where an exported file is given."""
    from project.extras.export.runtime import read_metadata

    metadata = read_metadata(path)
    metadata.setdefault("value_range", [0.0, 65535.0])  # of a file of before there was the key
    data = {key: metadata[key] for key in ("class_names", "image_size", "channels", "resize", "value_range")}
    config = {"data": {**data, "root": None}, "model": {"path": str(path)}, "trainer": {"precision": "32-true"}}
    return {"hyper_parameters": {**data, "in_channels": data["channels"]}, "config": config}


NO_EFFECT = ("data.on_seen_image", "trainer.accelerator", "trainer.devices", "trainer.precision")
COMMANDS = [Command(export, ignores=(*TRAINING_ONLY, *NO_EFFECT)), Command(verify, needs="nothing")]
OPENERS = [
    Opener((".onnx", ".pt2", ".safetensors"), ("predict",), read, "project.extras.export.exported.ExportedClassifier")
]
