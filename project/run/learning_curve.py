"""Logs the learning rates (advice A17), and says after training what the training-loss curve shows (advice A15)."""

from dataclasses import asdict
from typing import Any

import lightning as L

from project.messages import say
from project.optim.diagnosis import diagnose
from project.run.run import Run


class LearningCurve(L.Callback):
    """Logs lr/<group> of every group in every epoch; prints and records the diagnosis of the curve."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._points: list[tuple[float, float]] = []  # per epoch: training loss, mean of the highest learning rate
        self._rates: dict[str, float] = {}  # of every group, at the last batch
        self._highest: list[float] = []  # learning rate of the fastest group, at each batch of this epoch

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # Not at the end of the epoch, when the scheduler has set the next ones.
        self._rates = {f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        self._highest.append(max(self._rates.values()))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._highest:  # else this epoch has been counted before the run was stopped
            self._points.append((float(pl_module.train_loss.compute()), sum(self._highest) / len(self._highest)))
            self._highest = []
        for group in trainer.optimizers[0].param_groups:
            if "rate_in_force" in group:  # of SWATS, which chooses its own after the switch
                self._rates[f"lr/{group['name']}"] = group["rate_in_force"]
        pl_module.log_dict(self._rates)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.run.writes or not self._points:
            return
        losses, rates = zip(*self._points, strict=True)
        found = diagnose(losses, pl_module.task.chance_loss, rates)
        advice = f"; {found.advice}" if found.advice else ""
        say(f"\nlearning curve: {found.shape}: {found.evidence}{advice}")
        self.run.note(learning_curve=asdict(found))

    def state_dict(self) -> dict[str, Any]:
        return {"points": self._points, "rates": self._rates, "highest": self._highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._points, self._rates, self._highest = state["points"], state["rates"], state["highest"]
