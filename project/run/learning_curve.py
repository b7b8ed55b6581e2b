"""The learning rates in force, logged every epoch (advice A17), and what the training-loss curve says about them (advice A15)."""

from typing import Any

import lightning as L

from project.optim.diagnosis import diagnose
from project.run.run import Run


class LearningCurve(L.Callback):
    """Logs lr/<group> for every group; after the training prints the diagnosis of the curve, and keeps it in the run."""

    def __init__(self, run: Run) -> None:
        """
        Args:
            run: Takes the diagnosis.
        """
        self.run = run
        self._points: list[tuple[float, float]] = []  # training loss, and mean rate of the fastest group, of each epoch
        self._rates: dict[str, float] = {}  # in force, of every group
        self._highest: list[float] = []  # the rate of the fastest group at each batch of this epoch

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not at the end of the epoch, when the scheduler has set the next ones.
        self._rates = {f"lr/{group['name']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        self._highest.append(max(self._rates.values()))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._highest:
            loss = float(pl_module.train_loss.compute())
            self._points.append((loss, sum(self._highest) / len(self._highest)))
            self._highest = []
        for group in trainer.optimizers[0].param_groups:
            if "rate_in_force" in group:  # SWATS, whose rate after the switch is its own
                self._rates[f"lr/{group['name']}"] = group["rate_in_force"]
        pl_module.log_dict(self._rates)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run or not self._points:
            return
        losses, rates = zip(*self._points, strict=True)
        found = diagnose(losses, pl_module.num_classes, rates)
        advice = f"; {found.advice}" if found.advice else ""
        print(f"\nlearning curve: {found.shape}: {found.evidence}{advice}", flush=True)
        self.run.note(learning_curve={"shape": found.shape, "evidence": found.evidence, "advice": found.advice})

    def state_dict(self) -> dict[str, Any]:
        return {"points": self._points, "rates": self._rates, "highest": self._highest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._points, self._rates, self._highest = state["points"], state["rates"], state["highest"]
