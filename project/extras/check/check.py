"""`python -m project check`: a look at data, model and plan before the training (advice A7, A9 to A13).

It gets the parsed configuration, not built objects, because what cannot be built is what it reports. The parts are built one by
one; then the real training begins, without a run's folder, is looked at before its first step, timed for a few steps, and ended.
"""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from PIL import Image

from project.classifier import ImageClassifier
from project.data import ImageDataModule
from project.data.augment import Augment
from project.errors import UserError
from project.extras.check.findings import Findings
from project.extras.check.images import check_classes, check_files, class_table, stand_ins, take_some
from project.extras.check.labels import check_augmentations
from project.extras.check.probe import Measured, Probe
from project.extras.look import figures
from project.parser import OneLineParser
from project.run.seed import StepSeed
from project.trainer import Trainer

JUDGED = 1500  # training images that show what an augmentation does to the labels; of large ones fewer, for the time it takes
PIXELS = 40_000_000  # values of all their pixels together
SHEET = 64  # images on the contact sheet


def check(config: dict[str, Any], out: Path, images: int, steps: int, compare_init: bool) -> int:
    """Look at everything; print the lines, and draw the pictures.

    Args:
        config: The parsed configuration of a fit, plain values.
        out: Folder of the pictures; it is made.
        images: Of more than so many images, some are looked at.
        steps: In which one batch is to be learnt by heart.
        compare_init: Draw all initialisations beside each other.

    Returns:
        1 if anything is to stop for, else 0.
    """
    for name, value, least in (("images", images, 100), ("steps", steps, 1)):
        if value < least:
            raise UserError(f"{name} must be {least} or more, not {value}")
    found = Findings()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: no folder can be made at {out} ({error.strerror})") from error
    drawn: list[str] = []

    def keep(name: str, words: str, figure: Figure) -> None:
        Image.fromarray(figures.pixels(figure)).save(out / name)
        drawn.append(f"{out / name}: {words}")

    data = _check_data(config, images, found, keep)
    if data is None:
        print("The model and the plan are not looked at, because they need the images.")
    else:
        _check_model(config, data, steps, compare_init, found, keep)
    for line in drawn:
        print(f"picture    {line}")
    return _end(found)


def _end(found: Findings) -> int:
    stops, looks = found.count("stop"), found.count("look")
    advice = (
        "mend what says stop, and check again"
        if stops
        else "look at what says look, then fit"
        if looks
        else "go ahead: fit"
    )
    print(f"\n{found.count('ok')} ok, {looks} look, {stops} stop: {advice}")
    return 1 if stops else 0


def _check_data(config: dict[str, Any], limit: int, found: Findings, keep: Any) -> ImageDataModule | None:
    """Files, classes, augmentation; None when there is nothing to train on."""
    try:
        data = build(ImageDataModule, config["data"])
        table, whole = class_table(data), data.splits
        total = take_some(data, limit)
        if total > limit:
            count = sum(map(len, data.splits.values()))
            print(f"Looking at {count:,} of {total:,} images, evenly taken; --images {total} looks at all.")
        check_files(data, found, total)
    except UserError as error:
        found.stop("images", str(error))
        return None
    check_classes(table, data.sampler, bool(config["model"]["class_weights"]), found)
    keep("classes.png", "images of each class in each split", figures.class_counts(table))
    part = data.loaded["train"]
    judged = max(200, min(JUDGED, PIXELS // (data.channels * data.image_size**2)))
    rows = part.index[:: max(1, -(-len(part.index) // judged))]
    batch = part.images.__getitems__([(0, row) for row in rows])
    pixels, labels = batch["image"], batch["label"]
    chosen, columns = _of_each_class(labels.tolist())
    names = [data.class_names[labels[i]] for i in chosen]
    keep(
        "images.png",
        "training images of each class; do the names fit?",
        figures.image_grid(pixels[chosen], names, columns),
    )

    def apply(augmentation: Any, plain: torch.Tensor, epoch: int) -> torch.Tensor:
        return Augment([augmentation], data.seed)(plain, epoch, batch["index"])

    check_augmentations(data.augment.augmentations, apply, pixels, labels, data.class_names, found)
    if total > limit:
        stand_ins(data, whole)
    return data


def _of_each_class(labels: list[int]) -> tuple[list[int], int]:
    """Some images of every class, class by class, and how many fit side by side."""
    places: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        places.setdefault(label, []).append(i)
    each = max(1, min(8, SHEET // len(places)))
    few = min(each, *(len(rows) for rows in places.values())) if len(places) > 1 else each
    return [i for label in sorted(places)[:SHEET] for i in places[label][:each]], few if few > 3 else 8


def _check_model(
    config: dict[str, Any], data: ImageDataModule, steps: int, compare: bool, found: Findings, keep: Any
) -> None:
    """Build the model, begin the training, and look."""
    linked = {
        "class_names": data.class_names,
        "image_size": data.image_size,
        "in_channels": data.channels,
        "resize": data.resize,
    }
    try:
        torch.manual_seed(data.seed if config["seed_everything"] in (False, None) else int(config["seed_everything"]))
        model = build(ImageClassifier, {**config["model"], **linked})
        probe = Probe(found, keep, steps, compare)
        with torch.random.fork_rng():
            _begin(build(Trainer, config["trainer"]), model, data, probe)
        words = "no step would be trained: see trainer.max_epochs, max_steps and limit_train_batches"
        found.stop("training", words, "raise the one that is 0")
    except UserError as error:
        found.stop("model", str(error))
    except MisconfigurationException as error:
        found.stop("trainer", " ".join(str(error).split()))
    except Measured:
        pass
    except torch.OutOfMemoryError as error:
        found.stop(
            "memory",
            f"a batch of {data.batch_size} does not fit: {' '.join(str(error).split())[:160]}",
            "a smaller data.batch_size",
        )
    except Exception as error:  # of a network, an augmentation or an optimizer of the user's
        if os.environ.get("PROJECT_TRACEBACK"):
            raise
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        found.stop("training", f"it breaks: {words}", "PROJECT_TRACEBACK=1 shows where")


def _begin(settings: Any, model: ImageClassifier, data: ImageDataModule, probe: Probe) -> None:
    """Start the fit that the probe ends. Only what changes the training is kept of the callbacks: no loggers, no files."""
    wanted = settings["callbacks"] or []
    wanted = wanted if isinstance(wanted, list) else [wanted]
    callbacks = [copy.copy(each) for each in wanted if isinstance(each, EarlyStopping | WeightAveraging)]
    own = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "fast_dev_run": False}
    if settings["devices"] not in ("auto", 1, "1", -1, "-1") or settings["num_nodes"] != 1:
        print(
            "Rates, time and memory below are those of one device; several share the time, and lr_scaling follows them."
        )
    if settings["accelerator"] != "cpu":
        own["accelerator"] = settings["accelerator"]
    one = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    trainer = Trainer(**{**settings, **own, **one, "callbacks": [*callbacks, StepSeed(data.seed), probe]})
    trainer.fit(model, datamodule=data)


def build(kind: type, values: dict[str, Any]) -> Any:
    """What the command line would build of a part; of the trainer its arguments.

    Raises:
        UserError: when it cannot be built.
    """
    parser = OneLineParser(exit_on_error=False)
    parser.add_lightning_class_args(kind, "part")
    try:
        return parser.instantiate_classes(parser.parse_object({"part": values}))["part"]
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error
