"""`python -m project export`: fold, calibrate, write a draft, prove it, and only then keep it (advice A6)."""

import copy
import csv
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from project import __version__
from project.classifier import ImageClassifier
from project.data import ImageDataModule
from project.data.transforms import MODES
from project.errors import UserError
from project.extras.export.calibration import calibration_error, fit_temperature
from project.extras.export.files import check_packages, write
from project.extras.export.metadata import pack
from project.extras.export.proof import in_batches, prove
from project.extras.export.runtime import open_graph
from project.extras.export.speed import eager, measure
from project.files import output_path, written_whole
from project.nets.deployable import Deployable, NetworkOnly
from project.nets.fuse import Fold

CALIBRATED_ON = 2000  # validation images at most: one number is fitted, and a CPU does some 50 images a second
PROVEN_ON = 256
GOLDEN = 4  # images kept in the file
REBUILD = ("net", "task", "class_names", "image_size", "in_channels", "resize")  # what a .safetensors file is read with


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
) -> None:
    """Export a checkpoint, and keep the temperature in it, so that both predict the same; see `command.export`."""
    path = output_path(out, "model.onnx")
    check_packages(path)
    if not 0 < tolerance < 1:
        raise UserError(f"tolerance must be above 0 and below 1, not {tolerance}")
    if not preprocess and path.suffix == ".safetensors":
        raise UserError("preprocess has no effect on .safetensors, which holds only weights: leave it out")
    signal.signal(signal.SIGTERM, _stop)  # Lightning handles it in its own loops only; a draft must not stay behind
    checkpoint = torch.load(ckpt_path, weights_only=True, map_location="cpu")
    model.load_state_dict(checkpoint["state_dict"])
    model.temperature = before = checkpoint.get("temperature", 1.0)
    model.eval().cpu()
    images, labels = _validation_images(trainer, data, checkpoint)
    logits = in_batches(lambda part: model(torch.from_numpy(part)).float(), images.numpy())
    if not np.isfinite(logits).all():
        raise UserError("nothing was written: the checkpoint gives logits that are not finite; its training diverged")
    if calibrate:
        model.temperature = _calibrated(torch.from_numpy(logits), labels, model)
    _export(model, path, images, logits, _origin(checkpoint), preprocess, tolerance, speed)
    if model.temperature != before:
        _keep_temperature(Path(ckpt_path), checkpoint, model.temperature)


def _stop(*_: Any) -> None:
    raise SIGTERMException


def _validation_images(trainer: L.Trainer, data: ImageDataModule, checkpoint: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Some validation images and their labels, evenly taken; training images without labels where none validate."""
    data.trainer = trainer
    name = "val" if data.splits["val"] else "train"
    data.random_resized_crop = None
    data.setup("validate" if name == "val" else "fit")
    part = data.loaded[name]
    if name == "val":
        data.load_state_dict(checkpoint[type(data).__name__])
        data.val_dataloader()  # says so when the model has seen them
    index = [part.index[i] for i in torch.linspace(0, len(part.index) - 1, min(CALIBRATED_ON, len(part.index))).long()]
    batch = part.images.__getitems__([(0, key) for key in index])
    return batch["image"], batch["label"] if name == "val" else batch["label"][:0]


def _calibrated(logits: Tensor, labels: Tensor, model: ImageClassifier) -> float:
    """The fitted temperature; says what it changes."""
    if not len(labels):
        print(f"Temperature {model.temperature:.4g} as before: there are no validation images to calibrate on.")
        return model.temperature
    temperature = fit_temperature(logits, labels, model.task)
    before, after = (calibration_error(model.task.probabilities(logits / t), labels) for t in (1.0, temperature))
    print(
        f"Temperature {temperature:.3f} from {len(labels)} validation images: calibration error {before:.4f} before, "
        f"{after:.4f} after."
    )
    return temperature


def _origin(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a file remembers of its making: epoch and accuracy, and what it takes to build the network again."""
    metrics = checkpoint["callbacks"].get("BestAndLast", {}).get("metrics", {})
    model = {key: value for key, value in checkpoint["hyper_parameters"].items() if key in REBUILD}
    return {**{name: metrics[name] for name in ("epoch", "val/acc") if name in metrics}, "model": model}


def _export(
    model: ImageClassifier,
    path: Path,
    images: Tensor,
    logits: np.ndarray,
    origin: dict[str, Any],
    preprocess: bool,
    tolerance: float,
    speed: bool,
) -> None:
    """Write the file, or raise UserError and leave what was there."""
    fused = model.fused()
    _show_folds(fused.folds)
    around = (model.mean, model.std, model.temperature, model.task.probabilities)
    deployable = Deployable(fused.net, *around, fused.folds).eval()
    trained = Deployable(copy.deepcopy(model.net), *around).eval()
    golden = images[:: max(1, len(images) // GOLDEN)][:GOLDEN]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        probabilities = deployable(golden)
    metadata = {
        "version": __version__,
        "class_names": model.class_names,
        "image_size": model.image_size,
        "channels": model.in_channels,
        "colour_order": MODES[model.in_channels],
        "resize": model.resize,
        "preprocess": preprocess,
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "temperature": model.temperature,
        "folds": [vars(fold) for fold in fused.folds],
        "golden": {"images": pack(golden.numpy()), "probabilities": pack(probabilities.numpy())},
        **origin,
    }
    pair = images[:2].repeat(2, 1, 1, 1)[:2]  # of a single image, too
    module, example = (deployable, pair) if preprocess else (NetworkOnly(fused.net).eval(), model.normalise(pair))
    some = torch.linspace(0, len(images) - 1, min(PROVEN_ON, len(images))).long()
    with written_whole(path) as draft:
        write(module, example, draft, metadata)
        print(prove(draft, metadata, deployable, trained, images[some].numpy(), logits[some], tolerance))
        if speed:
            _show_speed(trained, deployable, draft, metadata, images)
        _save_folds(path.with_suffix(".folds.csv"), fused.folds)
    size = path.stat().st_size / 1e6
    parameters = sum(p.numel() for p in fused.net.parameters())
    gflops = counter.get_total_flops() / len(golden) / 1e9  # a multiplication and its addition count as two
    print(f"{path}: {size:.2f} MB, {parameters:,} parameters, {gflops:.3g} GFLOPs per image.")


def _show_folds(folds: list[Fold]) -> None:
    folded = sum(fold.into is not None for fold in folds)
    print(f"{folded} of {len(folds)} batch norms folded." if folds else "No batch norm to fold.")
    width = max((len(fold.norm) for fold in folds), default=0)
    for fold in folds:
        print(f"  {fold.norm:<{width}}  {f'into {fold.into}' if fold.into else f'left: {fold.reason}'}")


def _save_folds(path: Path, folds: list[Fold]) -> None:
    with written_whole(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["norm", "into", "reason"])
        table.writerows([fold.norm, fold.into or "", fold.reason] for fold in folds)


def _show_speed(
    trained: Deployable, deployable: Deployable, draft: Path, metadata: dict[str, Any], images: Tensor
) -> None:
    """Time the trained network, its fused forms and the file as written."""
    ways = {
        "eager, unfused": eager(trained, torch.contiguous_format),
        "eager, fused": eager(deployable, torch.contiguous_format),
        "fused + channels_last": eager(deployable, torch.channels_last),
    }
    if draft.suffix != ".safetensors":
        run = open_graph(draft, metadata, threads=torch.get_num_threads())
        runtime = "onnxruntime" if draft.suffix == ".onnx" else "torch"
        ways[f"the file in {runtime}"] = lambda batch: run(batch.numpy())
    print(measure(ways, images))


def _keep_temperature(path: Path, checkpoint: dict[str, Any], temperature: float) -> None:
    try:
        with written_whole(path) as draft:
            torch.save({**checkpoint, "temperature": temperature}, draft)
    except (UserError, RuntimeError) as error:  # torch's writer says RuntimeError when the disk is full
        print(f"The temperature could not be kept in the checkpoint, which will predict without it: {error}")
