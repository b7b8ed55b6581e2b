"""Ctrl-C between two batches instead of in the middle of a step, so that the checkpoint it leaves can be gone on from exactly."""

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L


class SafeInterrupt(L.Callback):
    """The first Ctrl-C waits for the end of the batch; a second one stops at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not in on_fit_start: after that Lightning notes the handlers that it will restore when the run has ended.
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers nowhere else
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _stop(self) -> None:
        if self._asked:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not after the last batch: what ends the epoch is still to come, and the next place to stop with it. Nor while gradients
        # accumulate: a checkpoint does not hold them.
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._stop()

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._stop()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
