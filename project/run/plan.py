"""Before the first step: the parameter groups on record, a figure of the planned learning rates, and advice."""

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from project.errors import UserError
from project.messages import say
from project.optim import group_table
from project.optim.advice import advise
from project.optim.plan import Plan, draw_plan, planned_rates, simulated_rates
from project.run.ema import EMA
from project.run.run import Run

# Of a training from random weights: optimizer steps, and fewest and most epochs. Chosen by experience: of 1,000 images
# 200 steps were far too few, and 800 eight points better; no grid has been measured yet.
STEPS, FEWEST, MOST = 800, 8, 100
INSTEAD = {  # of Lightning's callbacks after which steps, learning rates or weights are not those that are planned
    "GradientAccumulationScheduler": "trainer.accumulate_grad_batches",
    "BatchSizeFinder": "data.batch_size",
    "LearningRateFinder": "model.lr",
    "BaseFinetuning": "model.freeze",
    "StochasticWeightAveraging": "project.run.EMA",
    "EMAWeightAveraging": "project.run.EMA",
}


class RatePlan(L.Callback):
    """Writes groups.csv and rates.png into the run's folder, and prints and records the advice."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After ResumeChanges, which comes first among the callbacks, has put changed settings in force."""
        if not self.run.writes:
            return
        rows, text = groups_of(trainer, pl_module), io.StringIO()
        table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        self.run.write("groups.csv", text.getvalue())
        plan = make_plan(pl_module)
        if plan is None:
            return
        figure = draw_plan(plan)
        figure.savefig(self.run.folder / "rates.png", dpi=120)
        found = []
        if trainer.ckpt_path is None:
            found = advice_for(trainer, pl_module, plan)
            self.run.note(advice=found)
        for line in found:
            say(f"advice     {line}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("rates/planned", figure, trainer.global_step)
                if found:
                    logger.experiment.add_text("advice", "\n".join(f"- {line}" for line in found))


def epochs_for(settings: Mapping[str, Any], images: int, batch: int) -> tuple[int | None, str]:
    """The max_epochs of a trainer with these settings, and what is to be said of it: auto becomes a number.

    Args:
        images: In the training split.
        batch: Images of a batch on one device: the length is the same on any number of devices.
    """
    asked = settings["max_epochs"]
    if asked != "auto":
        return asked, ""
    if settings["max_steps"] > 0:
        return None, ""
    steps = math.ceil(images / (batch * settings["accumulate_grad_batches"]))
    epochs = min(max(FEWEST, math.ceil(STEPS / max(1, steps))), MOST)
    return epochs, f"length     {epochs} epochs for {images} training images (trainer.max_epochs auto)"


def check_callbacks(callbacks: list[L.Callback]) -> None:
    """Refuse those that do not keep to the plan."""
    for name in [kind.__name__ for callback in callbacks for kind in type(callback).__mro__]:
        if name in INSTEAD:
            raise UserError(f"trainer.callbacks: {name} does not keep to the planned run; use {INSTEAD[name]}")


def groups_of(trainer: L.Trainer, model: L.LightningModule) -> list[dict[str, Any]]:
    """One row for each parameter group of the optimizer: group, parameters, rate, weight_decay, trainable."""
    starts = model.freezing.trains_from
    known = {id(parameter): starts[name] for name, parameter in model.net.named_parameters() if name in starts}
    return group_table(trainer.optimizers[0].param_groups, known)


def advice_for(trainer: L.Trainer, model: L.LightningModule, plan: Plan) -> list[str]:
    """What looks unusual about this run: one sentence each."""
    data = trainer.datamodule
    return advise(
        data.batch_size,
        type(trainer.optimizers[0]).__name__,
        plan.highest,
        plan.decays or bool(model.watched),  # what waits for a metric may lower it, although no plan can show that
        data.sampler != "sequential",
        data.seeded,
        bool(model.freezing.trains_from) and model.weights is None,
        sum(1 / (1 - each.keep) for each in trainer.callbacks if isinstance(each, EMA)) / model.length().steps,
    )


def make_plan(model: L.LightningModule) -> Plan | None:
    """The learning rates of the whole run; None when its end is not known."""
    length = model.length()
    if length.steps is None:
        return None
    if model.planned is not None:
        return planned_rates(model.planned, length)
    recipe, groups = model.recipe, model.trainer.optimizers[0].param_groups
    return simulated_rates(recipe.schedule, groups, recipe.schedule_interval or "epoch", length)
