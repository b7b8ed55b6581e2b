"""`python -m project export`: fold, calibrate, write a draft, prove it, and only then keep it (advice A6; card C3)."""

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

from project import __version__
from project.classifier import ImageClassifier
from project.data import ImageDataModule
from project.data.transforms import MODES
from project.errors import UserError
from project.extras.export.calibration import calibration_error, fit_temperature
from project.extras.export.files import check_packages, write
from project.extras.export.metadata import pack, suffix_of
from project.extras.export.prove import in_batches, prove
from project.extras.export.runtime import open_exported
from project.extras.export.speed import eager, flops, measure
from project.files import output_path, written_whole
from project.nets.deployable import Deployable, NetworkOnly
from project.nets.fuse import Fold
from project.settings import FROM_MODEL, load_checkpoint

CHECKED_ON = 2000  # validation images at most: one number is fitted, and a CPU does some 50 images a second
PROVEN_ON = 256
GOLDEN = 4  # images kept in the file


def export_checkpoint(
    trainer: L.Trainer, model: ImageClassifier, data: ImageDataModule, checkpoint: str, out: str, *options: Any
) -> None:
    """Export the weights of a checkpoint, and keep the temperature there, so that both predict alike; see `export`."""
    path = Path(checkpoint)
    content = load_checkpoint(path)
    model.load_state_dict(content["state_dict"])
    model.temperature = content.get("temperature", 1.0)
    saved = content["callbacks"].get("BestAndLast", {}).get("metrics", {})
    origin = {name: saved[name] for name in ("epoch", "val/acc") if name in saved}
    origin["model"] = {key: content["hyper_parameters"][key] for key in ("net", *FROM_MODEL)}
    images, labels = _validation_images(trainer, data, content)
    signal.signal(
        signal.SIGTERM, _stop
    )  # Lightning listens to it in its own loops alone; the draft is to be taken away
    temperature = export(model, images, labels, out, origin, *options)
    if temperature == model.temperature:
        return
    try:
        with written_whole(path) as draft:
            torch.save({**torch.load(path, weights_only=True, map_location="cpu"), "temperature": temperature}, draft)
    except (UserError, RuntimeError) as error:  # torch's writer says RuntimeError when the disk is full
        print(f"The temperature could not be kept in the checkpoint, which will predict without it: {error}")


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
    index = [part.index[i] for i in torch.linspace(0, len(part.index) - 1, min(CHECKED_ON, len(part.index))).long()]
    batch = part.images.__getitems__([(0, key) for key in index])
    return batch["image"], batch["label"] if name == "val" else batch["label"][:0]


def export(
    model: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    out: str,
    origin: dict[str, Any],
    preprocess: bool = True,
    calibrate: bool = True,
    tolerance: float = 1e-4,
    speed: bool = True,
) -> float:
    """Write a file that runs without this project.

    Args:
        model: With its trained weights.
        images: To prove it on, uint8 (N, C, image_size, image_size).
        labels: Their classes, (N,).
        out: The file; its suffix says which kind.
        origin: What the file is to remember of its making.
        preprocess: Normalisation, temperature and softmax inside the file.
        calibrate: Fit a temperature; else it stays the model's.
        tolerance: Largest relative difference of the logits.
        speed: Measure it, too.

    Returns:
        The temperature.

    Raises:
        UserError: when the file cannot be written, or does not compute what the model does; nothing is then written.
    """
    path = output_path(out, "model.onnx")
    suffix = suffix_of(path)
    check_packages(suffix)
    if not 0 < tolerance < 1:
        raise UserError(f"tolerance must be above 0 and below 1, not {tolerance}")
    model = model.eval().cpu()
    logits = in_batches(lambda part: model(part).float(), images)
    if not np.isfinite(logits).all():
        raise UserError(
            "nothing was written: the checkpoint itself gives logits that are no numbers; its training has diverged"
        )
    temperature = _calibrate(logits, labels, model.temperature) if calibrate else model.temperature

    fused = model.fused()
    _show_folds(fused.folds)
    deployable = Deployable(fused.net, model.mean, model.std, temperature, fused.folds).eval()
    golden = images[:: max(1, len(images) // GOLDEN)][:GOLDEN]
    with torch.no_grad():
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
        "temperature": temperature,
        "folds": [vars(fold) for fold in fused.folds],
        "golden": {"images": pack(golden.numpy()), "probabilities": pack(probabilities.numpy())},
        **origin,
    }
    trained = Deployable(copy.deepcopy(model.net), model.mean, model.std, temperature).eval()
    module = deployable if preprocess else NetworkOnly(fused.net).eval()
    spread = torch.linspace(0, len(images) - 1, min(PROVEN_ON, len(images))).long()
    with written_whole(path) as draft:
        write(module, images[:2].repeat(2, 1, 1, 1)[:2] if preprocess else model.normalise(images[:2]), draft, metadata)
        print(prove(draft, metadata, deployable, trained, images[spread], logits[spread], tolerance))
        if speed:
            _show_speed(trained, deployable, draft, metadata, images)
        _save_folds(path.with_suffix(".folds.csv"), fused.folds)
    size = path.stat().st_size / 1e6
    parameters = sum(p.numel() for p in fused.net.parameters())
    print(f"{path}: {size:.2f} MB, {parameters:,} parameters, {flops(deployable, golden) / 1e9:.3g} GFLOPs an image.")
    return temperature


def _calibrate(logits: np.ndarray, labels: Tensor, before: float) -> float:
    if not len(labels):
        print(f"Temperature {before:.4g} as before: without validation images there is nothing to calibrate on.")
        return before
    values = torch.from_numpy(logits)
    temperature = fit_temperature(values, labels)
    plain, after = (calibration_error(values, labels, t) for t in (1.0, temperature))
    why = "" if temperature != 1 else "; all of them are right, which leaves nothing to calibrate on"
    print(
        f"Temperature {temperature:.3f} from {len(labels)} validation images: calibration error {plain:.4f} before, "
        f"{after:.4f} after{why}."
    )
    return temperature


def _show_folds(folds: list[Fold]) -> None:
    """Print the table of folds."""
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
        "eager, unfused": eager(trained, channels_last=False),
        "eager, fused": eager(deployable, channels_last=False),
        "fused + channels_last": eager(deployable, channels_last=True),
    }
    if draft.suffix != ".safetensors":
        run = open_exported(draft, metadata, threads=torch.get_num_threads())
        ways["the file in " + ("onnxruntime" if draft.suffix == ".onnx" else "torch")] = lambda batch: run(
            batch.numpy()
        )
    width = max(len(way) for way in ways)
    print(
        f"Speed on this CPU, {torch.get_num_threads()} threads: median, fastest to slowest round; times as fast as unfused."
    )
    for row in measure(ways, images):
        spread = f"({1000 * row.low:.2f} to {1000 * row.high:.2f})"
        figures = f"{1000 * row.median:8.2f} ms {spread:<20}  {row.batch / row.median:8.0f} images/s  {row.ratio:5.2f}x"
        print(f"  batch {row.batch:>2}  {row.way:<{width}}  {figures}")
