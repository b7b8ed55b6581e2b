"""`python -m project lr_find`: a learning rate from a range test (advice A12, A13)."""

import copy
import math
import shlex
from pathlib import Path

import lightning as L
import numpy as np
import yaml
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar, Timer

from project.data import ImageDataModule
from project.errors import UserError
from project.extras.tune.curve import Reading, draw, read_curve
from project.extras.tune.lr_find import RangeTest, range_test
from project.files import output_path, written_whole
from project.optim import Warmup
from project.optim.advice import USUAL_RATES
from project.recipe import Recipe
from project.run.audit import FreezeAudit
from project.run.interrupt import SafeInterrupt
from project.run.learning_curve import LearningCurve
from project.run.plan import RatePlan
from project.run.record import RunFolder
from project.run.seed import StepSeed
from project.run.switch import SwitchLine
from project.run.terminal import EpochLine, StartTable

FEWEST = 10  # steps
HIGHEST = 1e30  # beyond about 1e38 it is no number of 32 bits
FIRST_LINE = "# The learning rate that a range test found"
STEERING = (StepSeed, SafeInterrupt, ProgressBar)  # they belong to a step, or to the terminal
REPORTING = (
    RunFolder,
    StartTable,
    EpochLine,
    RatePlan,
    LearningCurve,
    SwitchLine,
    FreezeAudit,
    Checkpoint,
    ModelSummary,
    Timer,
)


def find_rate(
    trainer: L.Trainer,
    model: Recipe,
    data: L.LightningDataModule,
    steps: int = 100,
    min_lr: float = 1e-6,
    max_lr: float = 10.0,
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
    check_range(steps, min_lr, max_lr)
    tested = copy.deepcopy(model)
    hold(tested)
    rates = [float(rate) for rate in np.geomspace(min_lr, max_lr, steps)]
    result = range_test(trainer, only_steering(trainer.callbacks), tested, data, tested.lr, rates)
    return result, read_curve(result.rates, result.losses, steps)


def check_range(steps: int, min_lr: float, max_lr: float) -> None:
    if steps < FEWEST:
        raise UserError(f"steps must be {FEWEST} or more, not {steps}")
    if not 0 < min_lr < max_lr:
        raise UserError(f"min_lr must be above 0 and below max_lr, not {min_lr:g} with max_lr {max_lr:g}")
    if not max_lr <= HIGHEST:
        raise UserError(f"max_lr must be at most {HIGHEST:g}, not {max_lr:g}")
    if max_lr < 10 * min_lr:
        raise UserError(
            f"max_lr must be at least 10 times min_lr, not {max_lr:g} with min_lr {min_lr:g}: the curve needs room"
        )


def lr_find(
    trainer: L.Trainer, model: Recipe, data: ImageDataModule, out: str, steps: int, min_lr: float, max_lr: float
) -> None:
    """Find a rate, print what was found, and write the YAML and the picture.

    Raises:
        UserError: an argument is out of range, or a file cannot be written.
        SystemExit: code 1, when the loss did not fall; the picture is written, the YAML is not.
    """
    path, picture = yaml_path(out, "lr.yaml", FIRST_LINE), output_path(str(Path(out).with_suffix(".png")), "lr.yaml")
    check_range(steps, min_lr, max_lr)
    if trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches 0 leaves no step to measure: leave it out")
    say = print if trainer.is_global_zero else _nothing
    if left := [type(c).__name__ for c in trainer.callbacks if not isinstance(c, STEERING + REPORTING)]:
        say(f"lr_find    without {', '.join(left)}: callbacks of a training have no part in the test")
    say(
        f"lr_find    {steps} steps from {min_lr:g} to {max_lr:g}, all groups together, without schedule and warm-up",
        flush=True,
    )
    result, reading = find_rate(trainer, model, data, steps, min_lr, max_lr)
    if not trainer.is_global_zero:
        raise SystemExit(0 if reading.chosen else 1)
    if result.stopped:
        print(f"           stopped after {len(result.losses)}: {result.stopped}")
    _draw(picture, result, reading, f"range test, batch {data.batch_size}")
    if reading.chosen is None:
        print(f"no rate    {reading.why}")
        print(f"           {_mend(result, min_lr)}")
        print(f"           {picture} shows the curve; {path} was not written.", flush=True)
        raise SystemExit(1)
    for suggestion in reading.suggestions:
        print(f"suggestion {suggestion.name:<10}  {suggestion.rate:<8.3g}  {suggestion.words}")
    model.trainer = trainer
    factor, _ = model.scaling()
    rate, rule, why = _choose(reading, result.optimizer, factor, max_lr)
    print(f"chosen     {rule}, model.lr {rate:g}: {why}")
    if factor != 1:
        print(
            f"           {model.lr_scaling} scaling for this batch makes {rate * factor:.3g} of it, which is what was tested"
        )
    if not result.rates[0] <= rate <= result.rates[-1]:
        print(f"           it lies outside the rates that were tried, {result.rates[0]:.3g} to {result.rates[-1]:.3g}")
    low, high = USUAL_RATES.get(result.optimizer, (0.0, math.inf))
    if not low <= rate * factor <= 1.001 * high:
        print(f"           unusual for {result.optimizer}: {low:g} to {high:g} is common (A13); look at the picture")
    _write(path, out, rate, rule, data, trainer)
    print(
        f"Wrote {path} and {picture}; take it with: python -m project fit --config ... --config {shlex.quote(out)}",
        flush=True,
    )


def _choose(reading: Reading, optimizer: str, factor: float, max_lr: float) -> tuple[float, str, str]:
    """The rate, its rule and why: the reading's, or the highest usual one where the curve sets no bound."""
    rate = float(f"{reading.chosen.rate:.3g}")
    highest = float(f"{USUAL_RATES.get(optimizer, (0.0, math.inf))[1] / factor:.3g}")
    if not reading.falling or rate <= highest:
        return rate, reading.chosen.name, reading.why
    why = f"up to {max_lr:g} the loss stays low and sets no bound, so the highest rate that is common for {optimizer} (A13)"
    return highest, "usual", why


def hold(model: Recipe) -> None:
    """Make every step of a training alike: no schedule, no warm-up, and nothing frozen but what never trains."""
    model.schedule, model.schedule_interval, model.warmup = None, None, Warmup()
    model.trains_from = {name: None for name, start in model.trains_from.items() if start is None}


def only_steering(callbacks: list[L.Callback]) -> list[L.Callback]:
    """Those that have a part in each step; the others make a run's folder, print, draw, or watch over a whole training."""
    return [callback for callback in callbacks if isinstance(callback, STEERING)]


def yaml_path(out: str, example: str, first_line: str) -> Path:
    """Where a YAML file is to be written.

    Args:
        out: As the user gave it.
        example: A good name.
        first_line: How a file begins that was written before, and may be overwritten.

    Raises:
        UserError: when it cannot be, has another suffix, or another file is there.
    """
    path = output_path(out, example)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"out: {path.name} must end in .yaml, as a config file does, for example --out {example}")
    if path.is_file() and path.read_bytes()[: len(first_line)] != first_line.encode():
        raise UserError(f"out: {path} is there already and is not from this command; choose another name, or remove it")
    return path


def _mend(result: RangeTest, min_lr: float) -> str:
    if result.stopped:
        return (
            f"try more --steps, or --min_lr {min_lr / 1000:g} if it grows at once; else look at the images and labels"
        )
    return "look at the labels and at what is frozen; a larger batch or more --steps make the curve less noisy"


def _draw(path: Path, result: RangeTest, reading: Reading, title: str) -> None:
    with written_whole(path) as draft:
        draw(result.rates, result.losses, reading, title).savefig(draft, dpi=120)


def _write(path: Path, out: str, rate: float, rule: str, data: ImageDataModule, trainer: L.Trainer) -> None:
    batch = f"{data.batch_size} images x {trainer.world_size} devices x {trainer.accumulate_grad_batches} accumulated"
    header = [
        f"{FIRST_LINE.removeprefix('# ')} (rule: {rule}).",
        f"    python -m project fit --config ... --config {shlex.quote(out)}",
        f"Data: {len(data.splits['train'])} training images of {len(data.class_names)} classes (split {data.fingerprint}).",
        f"Batch: {batch}.",
    ]
    with written_whole(path) as draft:
        lines = "".join(f"# {line}\n" for line in header)
        draft.write_text(lines + yaml.safe_dump({"model": {"lr": rate}}), encoding="utf-8")


def _nothing(*_: object, **__: object) -> None:
    pass
