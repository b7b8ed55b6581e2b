"""`python -m project export`: calibrate, fold, write a draft, prove it, and only then keep it (advice A6)."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from project import __version__
from project.classifier import ImageClassifier
from project.data import ImageDataModule
from project.data.transforms import MODES
from project.errors import UserError
from project.extras.export.calibration import calibrated
from project.extras.export.files import write
from project.extras.export.proof import in_batches, prove
from project.extras.export.runtime import format_of, need, pack
from project.extras.export.speed import measure
from project.files import output_path, written_whole
from project.nets.deployable import Deployable, NetworkOnly

CALIBRATED_ON = 2000  # validation images at most: only one number is fitted
PROVEN_ON = 256
GOLDEN = 4  # images kept in the file
REBUILD = ("net", "task", "class_names", "image_size", "in_channels", "resize")  # what .safetensors needs to predict


def export_checkpoint(
    trainer: L.Trainer,
    model: ImageClassifier,
    data: ImageDataModule,
    ckpt_path: str,
    out: str,
    preprocess: bool,
    calibrate: bool,
    tolerance: float,
    speed: bool,
    opset: int | None,
) -> None:
    """Write the file, and keep the temperature in the checkpoint, so that both predict the same; see command.py."""
    path = output_path(out, "model.onnx")
    for package in ("onnx", "onnxscript", "onnxruntime", "safetensors"):
        need(package)
    if format_of(path) == ".safetensors" and not preprocess:
        raise UserError("preprocess has no effect on .safetensors, which holds only weights: leave it out")
    checkpoint = torch.load(ckpt_path, weights_only=True, map_location="cpu")
    model.load_state_dict(checkpoint["state_dict"])
    model.temperature = before = checkpoint.get("temperature", 1.0)
    model.eval()
    made, size = not Path(data.root or "").exists(), model.image_size
    if made:
        print(f"There are no images at {data.root}: the proof is on made ones, of random pixels.")
        images, labels = (256 * torch.rand(PROVEN_ON, model.in_channels, size, size)).byte(), []
    else:
        images, labels = _images(trainer, data, checkpoint)
    logits = in_batches(lambda part: model(torch.from_numpy(part)), images.numpy())
    if not np.isfinite(logits).all():
        raise UserError("nothing was written: the checkpoint gives logits that are not finite; its training diverged")
    if calibrate:
        model.temperature = calibrated(model, torch.from_numpy(logits), labels)

    fused = model.fused()
    print(f"{sum(fold.into is not None for fold in fused.folds)} of {len(fused.folds)} batch norms folded.")
    for fold in fused.folds:
        print(f"  {fold.norm}: {f'into {fold.into}' if fold.into else f'left, {fold.reason}'}")
    folds = [vars(fold) for fold in fused.folds]
    around = (model.mean, model.std, model.temperature, model.task.probabilities, fused.folds, model.tta)
    trained, deployable = (Deployable(net, *around).eval() for net in (model.net, fused.net))
    metadata = {**_about(model, checkpoint, images), "preprocess": preprocess, "folds": folds, "made_images": made}
    example = images[:1].repeat(2, 1, 1, 1)
    step = -(-len(images) // PROVEN_ON)
    with written_whole(path) as draft:
        if preprocess:
            write(deployable, example, draft, metadata, opset)
        else:
            write(NetworkOnly(fused.net, model.tta).eval(), model.normalise(example), draft, metadata, opset)
        print(prove(draft, deployable, model, images[::step].numpy(), logits[::step], tolerance))
        if speed:
            print(measure(trained, deployable, draft, images[:1]))
        # Another tta would have another temperature.
        if model.temperature != before and model.tta == checkpoint["hyper_parameters"].get("tta", "none"):
            content = io.BytesIO()  # given a path, torch would raise RuntimeError for a full disk
            torch.save({**checkpoint, "temperature": model.temperature}, content)
            with written_whole(Path(ckpt_path)) as copy:
                copy.write_bytes(content.getvalue())
        with written_whole(path.with_suffix(".folds.csv")) as table, table.open("w", newline="") as file:
            rows = csv.DictWriter(file, ["norm", "into", "reason"])
            rows.writeheader()
            rows.writerows(folds)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB.")


def _images(trainer: L.Trainer, data: ImageDataModule, checkpoint: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Some validation images and their labels, evenly taken; training images without labels where none validate."""
    name = "val" if data.splits["val"] else "train"
    data.trainer, data.random_resized_crop = trainer, None
    data.setup("validate" if name == "val" else "fit")
    if name == "val":
        data.load_state_dict(checkpoint[type(data).__name__])
        data.val_dataloader()  # says so when the model has seen them
    index = data.loaded[name].index
    some = index[:: -(-len(index) // CALIBRATED_ON)]
    batch = data.loaded[name].images.whole(some)
    return batch["image"], batch["label"][: len(some) if name == "val" else 0]


def _about(model: ImageClassifier, checkpoint: dict[str, Any], images: Tensor) -> dict[str, Any]:
    """What the file says about itself."""
    golden = images[:: -(-len(images) // GOLDEN)]
    return {
        "version": __version__,
        "class_names": model.class_names,
        "image_size": model.image_size,
        "channels": model.in_channels,
        "colour_order": MODES[model.in_channels],
        "resize": model.resize,
        "value_range": model.value_range,
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "temperature": model.temperature,
        "golden": {"images": pack(golden.numpy()), "probabilities": pack(model.probabilities(golden).numpy())},
        "model": {key: checkpoint["hyper_parameters"][key] for key in REBUILD} | {"tta": model.tta},
    }
