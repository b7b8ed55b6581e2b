"""Ctrl-C and SIGTERM between two batches instead of in the middle of a step, so that the checkpoint can be gone on from exactly."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SafeInterrupt(L.Callback):
    """The first signal waits for the end of the batch, or of the validation; a second one stops at once."""

    def __init__(self) -> None:
        self._asked: int | None = None
        self._before: dict[int, Any] = {}
        self._trainer: L.Trainer | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not in on_fit_start: after that Lightning notes the handlers that it will restore when the run has ended.
        if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers nowhere else
            return
        self._trainer = trainer
        alone = trainer is None or trainer.world_size == 1  # else Lightning tells the other processes of a SIGTERM
        for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        asked, self._asked = self._asked, number
        if asked is not None:
            self._stop()
        if getattr(self._trainer, "validating", False):
            print("\nStopping after this validation; a second Ctrl-C stops at once, without it.", flush=True)

    def _stop(self) -> None:
        if self._asked is not None:
            raise SIGTERMException if self._asked == signal.SIGTERM else KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not after the last batch: a resumed run would never validate this epoch. Nor while gradients accumulate: a checkpoint does
        # not hold them.
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._stop()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
