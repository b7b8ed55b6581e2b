"""best.ckpt and last.ckpt of a run."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from project.errors import UserError
from project.files import written_whole
from project.messages import say
from project.run.paths import short_name
from project.run.run import Run


class BestAndLast(Checkpoint):
    """Saves last.ckpt after every epoch and when a fit is stopped, and best.ckpt when the monitored metric improves.

    A validation within an epoch saves there and then: a score is that of the saved weights, and of no others. The last
    weights of a run are always validated: it may end within an epoch, or in one without a validation.
    Lightning calls a `Checkpoint` after all other callbacks, when the epoch's metrics are complete.
    """

    def __init__(
        self, run: Run, saves: bool = True, monitor: str = "val/acc", mode: Literal["max", "min"] | None = None
    ) -> None:
        """
        Args:
            run: Where to save. The command line sets it, and whether to save at all.
            saves: See there.
            monitor: Name of the logged metric that chooses the best epoch; without validation there is no best.
            mode: Whether a higher (max) or a lower (min) value is better; null: min for a loss, else max.
        """
        self.run, self.saves = run, saves
        self.monitor, self.mode = monitor, mode or ("min" if monitor.endswith("loss") else "max")
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}  # of the best epoch
        self.metrics: dict[str, float] = {}  # of the weights being saved, if they have been validated
        self._saved_step = math.inf  # of the weights on disk; infinite until training starts
        self._validated = -1  # optimizer steps of the weights that were validated last

    def path(self, name: str) -> Path | None:
        """Of a saved checkpoint, best or last; None when there is none."""
        path = self.run.checkpoints / f"{name}.ckpt" if self.run.checkpoints else None
        return path if path and path.is_file() else None

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._saved_step = trainer.global_step  # a restored checkpoint is on disk already
        if trainer.val_check_batch and trainer.check_val_every_n_epoch:
            # After whole steps only: a checkpoint does not hold the gradients of a part of one.
            part = -trainer.val_check_batch % trainer.accumulate_grad_batches
            trainer.val_check_batch = min(trainer.val_check_batch + part, trainer.num_training_batches)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._validated = trainer.global_step
        if trainer.validating and not trainer.fit_loop.epoch_loop.done and self.monitor.startswith("val/"):
            self._save_best(trainer, True)  # the metrics of the training are those of the epoch before

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        ends = trainer.global_step == trainer.max_steps or trainer.current_epoch + 1 == trainer.max_epochs
        if (ends or trainer.should_stop) and self._validated != trainer.global_step and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
        if self._validated == trainer.global_step:
            self._save_best(trainer, True, False)
        else:
            self.metrics = logged_now(trainer, False)
        self._save_last(trainer)

    def _save_best(self, trainer: L.Trainer, *validated: bool) -> None:
        """If these weights are the best; see `logged_now`."""
        self.metrics = metrics = logged_now(trainer, *validated)
        if self.monitor not in metrics:
            known = ", ".join(sorted(metrics))
            raise UserError(f"checkpoint.monitor: no metric {self.monitor!r} is logged; choose from {known}")
        if self._improves(metrics[self.monitor]):
            self.best_score, self.best_metrics = metrics[self.monitor], metrics
            self._save(trainer, "best.ckpt")

    def _improves(self, score: float) -> bool:
        if self.best_score is None:
            return True
        if math.isnan(self.best_score):
            return not math.isnan(score)
        # Ties go to the later epoch: small validation sets often tie, and its learning rate was lower.
        return score >= self.best_score if self.mode == "max" else score <= self.best_score

    def _save_last(self, trainer: L.Trainer) -> None:
        self._save(trainer, "last.ckpt")
        self._saved_step = trainer.global_step

    def _save(self, trainer: L.Trainer, name: str) -> None:
        if not self.saves or self.run.checkpoints is None:
            return
        path = self.run.checkpoints / name
        try:
            with written_whole(path) if trainer.is_global_zero else nullcontext(path) as draft:
                trainer.save_checkpoint(draft)  # on all ranks
        except RuntimeError as error:  # of torch, when the disk is full
            raise UserError(f"{path} cannot be written ({error}); the previous one is still there") from error

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ctrl-C, SIGTERM or an error: save what has been learned since the last checkpoint."""
        if trainer.state.fn != "fit":
            return
        for callback in trainer.callbacks:
            if trainer.validating and isinstance(callback, WeightAveraging):
                callback._swap_models(pl_module)  # validation has put the average into the model: swap back
        if trainer.global_step > self._saved_step and trainer.world_size == 1:
            self.metrics = {}  # they are an earlier epoch's
            self._save_last(trainer)
        if self._saved_step < math.inf and not isinstance(exception, UserError) and (last := self.path("last")):
            say(f"\nStopped. Saved {last}\nresume      python -m project fit --ckpt_path {short_name(last)}")

    def state_dict(self) -> dict[str, Any]:
        names = ("monitor", "mode", "best_score", "best_metrics", "metrics")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):  # else there is no best yet
            self.best_score, self.best_metrics = state["best_score"], state["best_metrics"]


def logged_now(trainer: L.Trainer, *validated: bool) -> dict[str, float]:
    """The epoch, and the metrics of the validation (True), of the training (False) or of both, where they are new."""
    found = {name: value for name, value in logged(trainer).items() if name.startswith("val/") in validated}
    return {"epoch": float(trainer.current_epoch)} | found


def logged(trainer: L.Trainer) -> dict[str, float]:
    """The latest value of every metric."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
