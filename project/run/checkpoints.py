"""best.ckpt and last.ckpt of a run."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from project.errors import UserError
from project.files import written_whole
from project.run.paths import short_name
from project.run.run import Run


class BestAndLast(Checkpoint):
    """Saves last.ckpt after every epoch and on any interruption, and best.ckpt when the monitored metric improves.

    Lightning calls a `Checkpoint` after all other callbacks of the epoch's end, when its metrics are complete.
    """

    def __init__(self, run: Run, monitor: str = "val/acc", mode: Literal["max", "min"] | None = None) -> None:
        """
        Args:
            run: Where to save. The command line gives it.
            monitor: The metric by which the best epoch is chosen, as it is logged; without validation there is no best.
            mode: Whether more (max) or less (min) of it is better; null takes less for a loss, else more.
        """
        self.monitor, self.mode = monitor, mode or ("min" if monitor.endswith("loss") else "max")
        self.run = run
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}  # of the best epoch
        self.metrics: dict[str, float] = {}  # of the weights being saved, when they have been validated
        self._saved_step: int | None = None  # of the weights on disk; None until training starts
        self._validated_epoch = -1

    @property
    def folder(self) -> Path | None:
        """None saves nothing."""
        return self.run.checkpoints

    @property
    def best_path(self) -> Path | None:
        return self.folder / "best.ckpt" if self.folder and self.best_score is not None else None

    @property
    def last_path(self) -> Path | None:
        return self.folder / "last.ckpt" if self.folder and (self.folder / "last.ckpt").is_file() else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step  # a checkpoint that has been restored is not new

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated_epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.folder is None:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        validated = self._validated_epoch == trainer.current_epoch
        if not validated:  # what is left of an earlier epoch's validation says nothing about these weights
            metrics = {name: value for name, value in metrics.items() if not name.startswith("val/")}
        metrics = self.metrics = {"epoch": float(trainer.current_epoch), **metrics}
        if validated and self.monitor not in metrics:
            raise UserError(
                f"checkpoint.monitor: no metric {self.monitor!r} is logged; there are {', '.join(sorted(metrics))}"
            )
        if validated and self._improves(metrics[self.monitor]):
            self.best_score = metrics[self.monitor]
            self.best_metrics = metrics
            self._save(trainer, "best.ckpt")
        self._save_last(trainer)

    def _improves(self, score: float) -> bool:
        if math.isnan(score):
            return self.best_score is None
        if self.best_score is None or math.isnan(self.best_score):
            return True
        # Among equals the later one: small validation sets often tie, and the rate has come down further since.
        return score >= self.best_score if self.mode == "max" else score <= self.best_score

    def _save_last(self, trainer: L.Trainer) -> None:
        self._save(trainer, "last.ckpt")
        self._saved_step = trainer.global_step

    def _save(self, trainer: L.Trainer, name: str) -> None:
        path = self.folder / name
        writing = written_whole(path) if trainer.is_global_zero else nullcontext(path)  # all ranks take part in saving
        try:
            with writing as draft:
                trainer.save_checkpoint(draft)
        except (UserError, RuntimeError) as error:  # torch's writer says RuntimeError when the disk is full
            raise UserError(f"{path} cannot be written: {error}; the previous checkpoint is still there") from error

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Ctrl-C, SIGTERM or an error: keep what has been learned since the last save."""
        new = self._saved_step is not None and trainer.global_step > self._saved_step
        for callback in trainer.callbacks if trainer.state.fn == "fit" and trainer.validating else ():
            if isinstance(callback, WeightAveraging):
                callback._swap_models(pl_module)  # it validates with the averaged weights: give the model its own back
        if self.folder is not None and trainer.state.fn == "fit" and new and trainer.world_size == 1:
            self.metrics = {}  # they are an earlier epoch's
            self._save_last(trainer)
        if trainer.state.fn == "fit" and trainer.is_global_zero and not isinstance(exception, UserError):
            print(stop_words(exception, self.last_path), flush=True)

    def state_dict(self) -> dict[str, Any]:
        names = ("monitor", "mode", "best_score", "best_metrics", "metrics")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["monitor"], state["mode"]) == (
            self.monitor,
            self.mode,
        ):  # with another metric the comparison starts anew
            self.best_score, self.best_metrics = state["best_score"], state["best_metrics"]


def stop_words(exception: BaseException, last: Path | None) -> str:
    """After a fit that was interrupted."""
    why = {"KeyboardInterrupt": "on Ctrl-C", "SIGTERMException": "on SIGTERM"}.get(
        type(exception).__name__, "on an error"
    )
    if last is None:
        return f"\nStopped {why}, before there was anything to save."
    return f"\nStopped {why}. Saved {last}\nresume      python -m project fit --ckpt_path {short_name(last)}"
