"""Ctrl-C and SIGTERM take effect between two batches, not within a step: the checkpoint can be resumed exactly."""

import signal
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SafeInterrupt(L.Callback):
    """The first signal waits for the end of the batch, or of the validation; a second one stops at once."""

    def __init__(self) -> None:
        self._asked: int | None = None  # the signal that came
        self._trainer: L.Trainer | None = None

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        # Not in on_fit_start: only after that, Lightning notes the handlers which it restores at the end of the run.
        self._trainer = trainer
        alone = trainer.world_size == 1  # else Lightning passes a SIGTERM on to the other processes
        for number in (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _: object) -> None:
        again, self._asked = self._asked, number
        if again:
            self._stop()
        if self._trainer.validating:
            print("\nStopping after this validation; a second Ctrl-C stops at once, without it.", flush=True)

    def _stop(self) -> None:
        if self._asked:
            raise SIGTERMException if self._asked == signal.SIGTERM else KeyboardInterrupt

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Not before a validation or after the last batch: a resumed run would leave that validation out. Nor while
        # gradients accumulate: a checkpoint does not hold them.
        loop = trainer.fit_loop
        due = trainer.is_last_batch or loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not due and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._stop()

    def on_train_epoch_start(self, *_: Any) -> None:
        self._stop()
