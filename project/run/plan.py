"""Before the first step: the groups on record, a picture of the planned learning rates, and advice."""

import csv
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.lr_scheduler import ReduceLROnPlateau

from project.files import written_whole
from project.optim import group_table
from project.optim.advice import advise
from project.optim.plan import Plan, draw_plan, planned_rates, simulated_rates
from project.run.run import Run


class RatePlan(L.Callback):
    """Writes groups.csv and rates.png into the run, and prints the advice once."""

    def __init__(self, run: Run) -> None:
        """
        Args:
            run: Takes table, picture and advice.
        """
        self.run, self._done = run, False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not in on_train_start: of a resumed run, the changes take effect there.
        if self._done or not trainer.is_global_zero or trainer.fast_dev_run:
            return
        self._done = True
        if self.run.started:
            rows = groups_of(trainer, pl_module)
            with (
                written_whole(self.run.folder / "groups.csv") as draft,
                draft.open("w", newline="", encoding="utf-8") as file,
            ):
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
        plan = make_plan(pl_module)
        if plan is None:
            return  # nobody knows the end of the run
        if self.run.started:
            self._draw(trainer, plan)
        if trainer.ckpt_path is None:
            self._advise(trainer, pl_module, plan)

    def _draw(self, trainer: L.Trainer, plan: Plan) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second that only a fit needs

        figure = draw_plan(plan)
        canvas = FigureCanvasAgg(figure)
        figure.savefig(self.run.folder / "rates.png", dpi=120)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                image = np.asarray(canvas.buffer_rgba())[..., :3]  # (H, W, 3)
                logger.experiment.add_image("rates/planned", image, trainer.global_step, dataformats="HWC")

    def _advise(self, trainer: L.Trainer, model: L.LightningModule, plan: Plan) -> None:
        found = advice_for(trainer, model, plan)
        for line in found:
            print(f"advice     {line}", flush=True)
        self.run.note(advice=found)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and found:
                logger.experiment.add_text("advice", "\n".join(f"- {line}" for line in found))


def groups_of(trainer: L.Trainer, model: L.LightningModule) -> list[dict[str, Any]]:
    """One row for each group of the optimizer: group, parameters, rate, weight_decay, trainable."""
    starts = model.freezing.trains_from
    known = {id(parameter): starts[name] for name, parameter in model.net.named_parameters() if name in starts}
    return group_table(trainer.optimizers[0].param_groups, known)


def advice_for(trainer: L.Trainer, model: L.LightningModule, plan: Plan) -> list[str]:
    """What the guide remarks on this run."""
    data = trainer.datamodule
    by_metric = any(isinstance(config.scheduler, ReduceLROnPlateau) for config in trainer.lr_scheduler_configs)
    return advise(
        data.batch_size,
        type(trainer.optimizers[0]).__name__,
        plan.highest,
        plan.decays or bool(model.planned.plateaus if model.planned else by_metric),
        data.sampler != "sequential",
        data.seeded,
        bool(model.freezing.trains_from) and model.weights is None,
    )


def make_plan(model: L.LightningModule) -> Plan | None:
    """The learning rates of the whole run, if it has an end."""
    length = model.length()
    if length.steps is None:
        return None
    if model.planned is not None:
        return planned_rates(model.planned, length)
    recipe, groups = model.recipe, model.trainer.optimizers[0].param_groups
    return simulated_rates(recipe.schedule, groups, recipe.schedule_interval or "epoch", length)
