"""`python -m project lr_find`: a learning rate from a range test (advice A12, A13)."""

import copy
import math
from pathlib import Path

import lightning as L
import numpy as np
import yaml
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar

from project.callbacks import (
    EpochLine,
    FreezeAudit,
    LearningCurve,
    RatePlan,
    RunFolder,
    SafeInterrupt,
    StartTable,
    StepSeed,
    SwitchLine,
)
from project.data import ImageDataModule
from project.errors import UserError
from project.optim import Warmup
from project.outfile import output_path, written_whole
from project.recipe import Recipe
from project.tune.curve import Reading, draw, read_curve
from project.tune.lr_find import RangeTest, range_test

FEWEST = 10  # steps
STEERING = (StepSeed, SafeInterrupt, ProgressBar)  # they belong to a step, or to the terminal
REPORTING = (RunFolder, StartTable, EpochLine, RatePlan, LearningCurve, SwitchLine, FreezeAudit, Checkpoint, ModelSummary)


def find_rate(
    trainer: L.Trainer, model: Recipe, data: L.LightningDataModule, steps: int = 100, min_lr: float = 1e-6, max_lr: float = 10.0
) -> tuple[RangeTest, Reading]:
    """A range test that leaves no trace: model, trainer and random numbers are afterwards what they were before.

    A copy of the model is trained with the configuration's optimizer and groups, without schedule and warm-up. Layers that
    wait for an epoch train from the start: the rate is to suit them too. A fit may follow with the same objects.

    Args:
        trainer: Its length, loggers and validation do not matter.
        model: Not trained yet.
        data: The images.
        steps: Optimizer steps, 10 or more.
        min_lr: First `model.lr`, above 0.
        max_lr: Last.

    Returns:
        The measurement, its rates being values of `model.lr`, and what it says.

    Raises:
        UserError: an argument is out of range.
    """
    if steps < FEWEST:
        raise UserError(f"steps must be {FEWEST} or more, not {steps}")
    if not 0 < min_lr < max_lr < math.inf:
        raise UserError(f"min_lr must be above 0 and below max_lr, not {min_lr:g} with max_lr {max_lr:g}")
    tested = copy.deepcopy(model)
    hold(tested)
    rates = [float(rate) for rate in np.geomspace(min_lr, max_lr, steps)]
    result = range_test(trainer, only_steering(trainer.callbacks), tested, data, tested.lr, rates)
    return result, read_curve(result.rates, result.losses, steps)


def lr_find(trainer: L.Trainer, model: Recipe, data: ImageDataModule, out: str, steps: int, min_lr: float, max_lr: float) -> None:
    """Find a rate, print what was found, and write the YAML and the picture.

    Raises:
        UserError: an argument is out of range, or a file cannot be written.
        SystemExit: code 1, when the loss did not fall; the picture is written, the YAML is not.
    """
    path = yaml_path(out, "lr.yaml")
    say = print if trainer.is_global_zero else _nothing
    if left := [type(c).__name__ for c in trainer.callbacks if not isinstance(c, STEERING + REPORTING)]:
        say(f"lr_find    without {', '.join(left)}: callbacks of a training have no part in the test")
    say(f"lr_find    {steps} steps from {min_lr:g} to {max_lr:g}, all groups together, without schedule and warm-up", flush=True)
    result, reading = find_rate(trainer, model, data, steps, min_lr, max_lr)
    if not trainer.is_global_zero:
        raise SystemExit(0 if reading.chosen else 1)
    if result.stopped:
        print(f"           stopped after {len(result.losses)}: {result.stopped}")
    picture = path.with_suffix(".png")
    _draw(picture, result, reading, f"range test, batch {data.batch_size}")
    if reading.chosen is None:
        print(f"no rate    {reading.why}")
        print(f"           {_mend(result, min_lr)}")
        print(f"           {picture} shows the curve; {path} was not written.", flush=True)
        raise SystemExit(1)
    for suggestion in reading.suggestions:
        print(f"suggestion {suggestion.name:<10}  {suggestion.rate:<8.3g}  {suggestion.words}")
    if reading.falling:
        print(f"           the loss is still low at {max_lr:g}: --max_lr {10 * max_lr:g} would see more")
    rate = float(f"{reading.chosen.rate:.3g}")
    print(f"chosen     {reading.chosen.name}, model.lr {rate:g}: {reading.why}")
    model.trainer = trainer
    factor, _ = model.scaling()
    if factor != 1:
        print(f"           {model.lr_scaling} scaling for this batch makes {rate * factor:.3g} of it, which is what was tested")
    _write(path, rate, reading.chosen.name, data, trainer)
    print(f"Wrote {path} and {picture}; take it with: python -m project fit --config ... --config {path.name}", flush=True)


def hold(model: Recipe) -> None:
    """Make every step of a training alike: no schedule, no warm-up, and nothing frozen but what never trains."""
    model.schedule, model.schedule_interval, model.warmup = None, None, Warmup()
    model.trains_from = {name: None for name, start in model.trains_from.items() if start is None}


def only_steering(callbacks: list[L.Callback]) -> list[L.Callback]:
    """Those that have a part in each step; the others make a run's folder, print, draw, or watch over a whole training."""
    return [callback for callback in callbacks if isinstance(callback, STEERING)]


def yaml_path(out: str, example: str) -> Path:
    """Where a YAML file is to be written.

    Raises:
        UserError: when it cannot be, or has another suffix.
    """
    path = output_path(out, example)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"out: {path.name} must end in .yaml, as a config file does, for example --out {example}")
    return path


def _mend(result: RangeTest, min_lr: float) -> str:
    if result.stopped:
        return f"it may be too high from the start: try --min_lr {min_lr / 1000:g}; else look at the images and labels"
    return "look at the labels and at what is frozen; a larger batch or more --steps make the curve less noisy"


def _draw(path: Path, result: RangeTest, reading: Reading, title: str) -> None:
    with written_whole(path) as draft:
        draw(result.rates, result.losses, reading, title).savefig(draft, dpi=120)


def _write(path: Path, rate: float, rule: str, data: ImageDataModule, trainer: L.Trainer) -> None:
    batch = f"{data.batch_size} images x {trainer.world_size} devices x {trainer.accumulate_grad_batches} accumulated"
    header = [
        f"The learning rate that a range test found (rule: {rule}).",
        "    python -m project fit --config ... --config " + path.name,
        f"Data: {len(data.splits['train'])} training images of {len(data.class_names)} classes (split {data.fingerprint}).",
        f"Batch: {batch}.",
    ]
    with written_whole(path) as draft:
        lines = "".join(f"# {line}\n" for line in header)
        draft.write_text(lines + yaml.safe_dump({"model": {"lr": rate}}), encoding="utf-8")


def _nothing(*_: object, **__: object) -> None:
    pass
