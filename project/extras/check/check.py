"""`python -m project check`: images, labels, model and plan are checked before the training (advice A7, A9 to A13, A15).

It gets the parsed configuration, not built objects, because what cannot be built is what it reports. The parts are built one by
one; then the real training starts, without a run folder. `Probe` examines it before its first step, times some steps, and ends it.
"""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from project.classifier import ImageClassifier
from project.cli import build
from project.data import ImageDataModule
from project.errors import UserError
from project.extras.check.augmentations import check_augmentations
from project.extras.check.findings import Findings
from project.extras.check.images import batch_of, check_classes, check_files, class_table, evenly, stand_in
from project.extras.check.probe import Measured, Probe
from project.extras.look import figures
from project.run.paths import flatten
from project.run.seed import StepSeed

JUDGED, LEAST = (
    1500,
    200,
)  # training images that show what an augmentation does to the labels: at most, and of large ones
PIXELS = 40_000_000  # values of all their pixels together, for the time it takes
SHEET = 64  # images on the contact sheet


def run(config: dict[str, Any], out: str, images: int, steps: int, compare_init: bool) -> int:
    """Check everything; see project.extras.check.command.check."""
    for name, value, least in (("images", images, 100), ("steps", steps, 1)):
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}")
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: no folder can be made at {folder} ({error.strerror})") from error
    found = Findings(folder)
    data = _check_data(config, images, found)
    if data is None:
        print("The model and the plan are not checked, because they need the images.")
    else:
        _check_training(config, data, Probe(found, steps, compare_init), found)
    return found.finish()


def _check_data(config: dict[str, Any], limit: int, found: Findings) -> ImageDataModule | None:
    """Files, classes, augmentation; None when there is nothing to train on."""
    try:
        data = build(ImageDataModule, config["data"])
        splits, table = data.splits, class_table(data)
        total = sum(map(len, splits.values()))
        if total > limit:
            print(f"Checking {limit:,} of {total:,} images, evenly chosen; --images {total} checks all.")
            data.splits = {name: evenly(rows, max(1, limit * len(rows) // total)) for name, rows in splits.items()}
        check_files(data, found)
    except UserError as error:
        found.add("error", "images", " ".join(str(error).split()))
        return None
    balanced = data.sampler == "balanced" or flatten(config).get("model.task.init_args.class_weights") is not None
    check_classes(table, balanced, found)
    found.picture("classes.png", "images of each class in each split", figures.class_counts(table))
    count = min(JUDGED, PIXELS // (data.channels * data.image_size**2))
    batch = batch_of(data.loaded["train"], max(LEAST, count))
    labels, each = batch["label"], max(1, min(8, SHEET // len(data.class_names)))
    rows = torch.cat([(labels == label).nonzero()[:each, 0] for label in labels.unique()[:SHEET]])
    names = [data.class_names[label] for label in labels[rows].tolist()]
    sheet = figures.image_grid(batch["image"][rows], names)
    found.picture("images.png", "training images of each class; do the names fit?", sheet)
    check_augmentations(data, batch, found)
    if total > limit:
        stand_in(data, splits)
    return data


def _check_training(config: dict[str, Any], data: ImageDataModule, probe: Probe, found: Findings) -> None:
    """Build the model, start the training, and let the probe examine it."""
    linked = {
        "class_names": data.class_names,
        "image_size": data.image_size,
        "in_channels": data.channels,
        "resize": data.resize,
    }
    try:
        torch.manual_seed(data.seed if config["seed_everything"] in (False, None) else int(config["seed_everything"]))
        model = build(ImageClassifier, {**config["model"], **linked})
        trainer = _trainer(config["trainer"], [StepSeed(data.seed), probe])
        with torch.random.fork_rng():
            trainer.fit(model, datamodule=data)
        words = "no step would be trained: see trainer.max_epochs, max_steps and limit_train_batches"
        found.add("error", "training", words, "raise the one that is 0")
    except Measured:
        pass
    except (UserError, MisconfigurationException) as error:
        found.add("error", "model", " ".join(str(error).split()))
    except torch.OutOfMemoryError:
        found.add("error", "memory", f"a batch of {data.batch_size} does not fit", "a smaller data.batch_size")
    except Exception as error:  # of a network, an augmentation or an optimizer of the user's
        if os.environ.get("PROJECT_TRACEBACK"):
            raise
        words = f"it fails with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        found.add("error", "training", words, "PROJECT_TRACEBACK=1 shows where")


def _trainer(settings: dict[str, Any], callbacks: list) -> Any:
    """The configured trainer on one device; of its callbacks those that change the training, and no loggers or files."""
    raise NotImplementedError
