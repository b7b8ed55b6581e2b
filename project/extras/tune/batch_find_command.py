"""`python -m project batch_find`: measure every batch size in a process of its own, so that running out of memory is survived."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning as L
import yaml

from project.data import ImageDataModule
from project.errors import UserError
from project.extras.tune import batch_find as tune
from project.extras.tune.batch_find import Measurement
from project.extras.tune.lr_find import borrowed
from project.extras.tune.lr_find_command import hold, only_steering, yaml_path
from project.files import written_whole
from project.recipe import Recipe
from project.run.child import run_to_the_end
from project.run.record import RunFolder

RESULT = "PROJECT_BATCH_RESULT"  # in the environment of a process that measures: the file to write
SMALLEST_LIMIT = 0.1  # GB; the libraries alone take more
FIRST_LINE = "# The batch size that batch_find recommends"
GB = 1e9


def batch_find(
    trainer: L.Trainer,
    model: Recipe,
    data: ImageDataModule,
    out: str,
    smallest: int,
    largest: int,
    steps: int,
    limit: float | None,
) -> None:
    """Print a table of the sizes and write the recommended one to a YAML file.

    Raises:
        UserError: an argument is out of range, a file cannot be written, or training fails for another reason than memory.
        SystemExit: code 1, when no size fits.
    """
    if RESULT in os.environ:
        _measure(trainer, model, data, steps, limit, Path(os.environ[RESULT]))
        return
    path = yaml_path(out, "batch.yaml", FIRST_LINE)
    images = len(data.splits["train"])
    _check(trainer, smallest, largest, images, steps, limit)
    device = trainer.strategy.root_device.type
    config = next(callback.config for callback in trainer.callbacks if isinstance(callback, RunFolder))
    print(f"batch_find {images} training images, median of {steps} steps on {device}, precision {trainer.precision}")
    what = "of tensors" if device == "cuda" else "of the process"
    print(f"           {'batch':>6}  {'images/s':>9}  {'memory ' + what:>21}  {'rate':>9}  {'decay x':>7}", flush=True)
    measured = []
    for size in tune.sizes(smallest, min(largest, images)):
        measured.append(_in_a_process(config, size))
        print(f"           {_row(measured[-1])}", flush=True)
        if measured[-1].failure:
            break
    fit = [m for m in measured if not m.failure]
    if not fit:
        print(
            f"nothing    a batch of {smallest} does not fit; {path} was not written. Smaller images or another network would."
        )
        raise SystemExit(1)
    accumulated = trainer.accumulate_grad_batches
    fastest, (chosen, why) = max(fit, key=lambda m: m.speed), tune.recommend(measured, images, accumulated)
    bound = "" if measured[-1].failure else ", as far as was measured"
    print(f"largest    {fit[-1].batch} fits{bound}")
    print(f"fastest    {fastest.batch}, {fastest.speed:,.0f} images/s")
    print(f"recommend  {chosen.batch}: {why}")
    print(f"           {_rate_words(model, chosen, accumulated)}")
    with written_whole(path) as draft:
        draft.write_text(_yaml(out, chosen, why, images, device, trainer), encoding="utf-8")
    print(f"Wrote {path}; take it with: python -m project fit --config ... --config {shlex.quote(out)}", flush=True)


def _check(trainer: L.Trainer, smallest: int, largest: int, images: int, steps: int, limit: float | None) -> None:
    if trainer.world_size > 1:
        raise UserError("batch_find measures one device, as data.batch_size counts for each: give --trainer.devices 1")
    if smallest < 1 or smallest & (smallest - 1):
        raise UserError(f"min_batch must be a power of two, not {smallest}")
    if largest < smallest:
        raise UserError(f"max_batch must be min_batch or more, not {largest} with min_batch {smallest}")
    if smallest > images:
        raise UserError(f"min_batch is {smallest}, but there are {images} training images")
    if steps < 1:
        raise UserError(f"steps must be 1 or more, not {steps}")
    if limit is not None and not SMALLEST_LIMIT <= limit <= 1e6:
        raise UserError(
            f"memory_limit must be {SMALLEST_LIMIT:g} to 1e+06 GB, not {limit:g}; null takes 90 % of what is free"
        )
    if limit is not None and trainer.strategy.root_device.type != "cpu":
        raise UserError("memory_limit is for a CPU; a GPU has a limit of its own. Leave it out")


def _in_a_process(config: str, size: int) -> Measurement:
    """Measure one size in a process of its own.

    Raises:
        UserError: it failed, and not for lack of memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, result = Path(folder) / "config.yaml", Path(folder) / "result.json"
        file.write_text(config, encoding="utf-8")
        here = os.pathsep.join(part or os.getcwd() for part in sys.path)
        command = [sys.executable, "-m", "project", "batch_find", "--config", str(file), "--data.batch_size", str(size)]
        environment = os.environ | {RESULT: str(result), "PYTHONPATH": here}
        with (Path(folder) / "log.txt").open("w+") as log:
            code, stopped = run_to_the_end(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
            log.seek(0)
            lines = [line.rstrip() for line in log if line.strip()] or ["it said nothing"]
        measured = tune.read(result)
    if stopped:
        raise SystemExit(128 + stopped)
    if measured is not None:
        return measured
    if code == -signal.SIGKILL:  # as the kernel does to whoever takes the last memory
        return Measurement(size, failure="out of memory: its process was killed")
    if any(
        tune.says_out_of_memory(line) for line in lines
    ):  # C++ ends the process; so does a library that cannot be loaded
        return Measurement(size, failure="out of memory")
    reason = lines[-1].removeprefix("error: ")
    raise UserError(
        reason if code == 2 else f"a batch of {size}: training failed, and not for lack of memory: {reason}"
    )


def _measure(
    trainer: L.Trainer, model: Recipe, data: ImageDataModule, steps: int, limit: float | None, result: Path
) -> None:
    """In the process of one size: train for some steps and write down what it took."""
    cpu = trainer.strategy.root_device.type == "cpu"
    if cpu:
        _limit_memory(limit)
    timer = tune.StepTimer(min(data.batch_size, len(data.splits["train"])), steps)
    hold(model)
    callbacks = [*only_steering(trainer.callbacks), timer]
    try:
        with borrowed(trainer, callbacks, -1):
            trainer.fit(model, datamodule=data)
    except Exception as error:
        if not tune.is_out_of_memory(error):
            raise
        tune.save(result, Measurement(data.batch_size, failure="out of memory"))
        return
    factor, decay = model.scaling()
    memory = tune.peak_memory(trainer.strategy.root_device)
    tune.save(result, Measurement(data.batch_size, timer.median(), memory, model.lr * factor, decay))


def _limit_memory(limit: float | None) -> None:
    """Let this process fail before the machine does, and let the kernel choose it before all others."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        pass  # no Linux
    free = tune.free_memory()
    allowed = int(limit * GB) if limit else int(0.9 * free) if free else None
    if allowed is None:
        return
    try:
        import resource  # here, because Windows has none

        resource.setrlimit(resource.RLIMIT_DATA, (allowed, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    except (ImportError, OSError, ValueError):
        pass


def _row(m: Measurement) -> str:
    if m.failure:
        return f"{m.batch:>6}  {m.failure}"
    return f"{m.batch:>6}  {m.speed:>9,.0f}  {m.memory / GB:>18.2f} GB  {m.rate:>9.3g}  {m.decay_factor:>7.3g}"


def _rate_words(model: Recipe, chosen: Measurement, accumulated: int) -> str:
    if model.reference_batch is None:
        advice = "lr_find finds one for it, or model.reference_batch and lr_scaling let it follow"
        return f"the rate stays model.lr {model.lr:g}, whatever the batch: {advice} (A12)"
    batch = chosen.batch * accumulated
    made = (
        f"model.lr {model.lr:g}, meant for {model.reference_batch}, becomes {chosen.rate:.3g} for {batch} images a step"
    )
    return f"{model.lr_scaling} scaling: {made}, weight decay x {chosen.decay_factor:.3g} (A12)"


def _yaml(out: str, chosen: Measurement, why: str, images: int, device: str, trainer: L.Trainer) -> str:
    header = [
        f"{FIRST_LINE.removeprefix('# ')}: {why}.",
        f"    python -m project fit --config ... --config {shlex.quote(out)}",
        f"Measured with {images} training images on {device}, precision {trainer.precision}, "
        f"{trainer.accumulate_grad_batches} batches a step: {chosen.speed:,.0f} images/s.",
    ]
    return "".join(f"# {line}\n" for line in header) + yaml.safe_dump({"data": {"batch_size": chosen.batch}})
