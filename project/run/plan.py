"""Before the first step: the groups on record, a picture of the planned rates, and advice."""

import csv
import json
from pathlib import Path

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.lr_scheduler import ReduceLROnPlateau

from project.optim.advice import advise
from project.optim.plan import Plan, draw_plan, planned_rates, simulated_rates
from project.recipe import Recipe
from project.run.paths import read
from project.run.record import RunFolder, write


class RatePlan(L.Callback):
    """Writes groups.csv and rates.png into the run, and prints the advice once."""

    def __init__(self) -> None:
        self._done = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Recipe) -> None:
        # Of the first epoch only: not in on_train_start, which for callbacks comes before what the model restores.
        if self._done or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        self._done = True
        run = run_of(trainer)
        if run is not None:
            save_table(run / "groups.csv", pl_module.group_table())
        plan = make_plan(pl_module)
        if plan is None:
            return  # nobody knows the end of the run
        if run is not None:
            self._draw(trainer, plan, run / "rates.png")
        if trainer.resumed_step is None:
            self._advise(trainer, pl_module, plan, run)

    def _draw(self, trainer: L.Trainer, plan: Plan, path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second that only a fit needs

        figure = draw_plan(plan)
        canvas = FigureCanvasAgg(figure)
        figure.savefig(path, dpi=120)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                image = np.asarray(canvas.buffer_rgba())[..., :3]  # (H, W, 3)
                logger.experiment.add_image("rates/planned", image, trainer.global_step, dataformats="HWC")

    def _advise(self, trainer: L.Trainer, model: Recipe, plan: Plan, run: Path | None) -> None:
        found = advice_for(trainer, model, plan)
        for line in found:
            print(f"advice     {line}", flush=True)
        if run is not None:
            write(run / "run.json", json.dumps(read(run / "run.json") | {"advice": found}, indent=2))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and found:
                logger.experiment.add_text("advice", "\n".join(f"- {line}" for line in found))


def advice_for(trainer: L.Trainer, model: Recipe, plan: Plan) -> list[str]:
    """What the guide remarks on this run."""
    data = trainer.datamodule
    return advise(
        data.batch_size,
        type(trainer.optimizers[0]).__name__,
        plan.highest,
        plan.decays or bool(model.planned.plateaus if model.planned else by_metric(trainer)),
        data.sampler != "sequential",
        data.seeded,
        bool(model.trains_from) and model.weights is None,
    )


def make_plan(model: Recipe) -> Plan | None:
    """The rates of the whole run, if it has an end."""
    length = model.length()
    if length.steps is None:
        return None
    if model.planned is not None:
        return planned_rates(model.planned, length)
    return simulated_rates(
        model.schedule, model.trainer.optimizers[0].param_groups, model.schedule_interval or "epoch", length
    )


def by_metric(trainer: L.Trainer) -> bool:
    return any(isinstance(config.scheduler, ReduceLROnPlateau) for config in trainer.lr_scheduler_configs)


def run_of(trainer: L.Trainer) -> Path | None:
    """The folder of the run, if one is kept."""
    return next((callback.run for callback in trainer.callbacks if isinstance(callback, RunFolder)), None)


def save_table(path: Path, rows: list[dict]) -> None:
    """Rows of one kind as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
