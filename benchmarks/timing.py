"""Callbacks: one times the training epochs of `fit`, and `benchmarks.measure` adds it to its runs; one stops a run.

    python -m project fit --config configs/folder.yaml --data.root FOLDER \
        --trainer.callbacks+=benchmarks.timing.EpochTimer --trainer.callbacks.path=times.json

EpochTimer measures from the start of each training epoch to the end of its last batch, without validation and
checkpoints, on any machine and at no cost (a GPU is waited for once an epoch). At the end of training it writes
{"images": [...], "seconds": [...], "accuracies": [...], "first_step": ...}: a number for each epoch, the accuracies
those of validation, if there is one; and when the first step was done, in seconds since 1970.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch


class EpochTimer(L.Callback):
    """Counts images and seconds of every training epoch."""

    def __init__(self, path: str) -> None:
        """
        Args:
            path: Of the JSON file to write.
        """
        self.path, self.images, self.seconds, self.accuracies = Path(path), [], [], []
        self._start, self._first = 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.images.append(0)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images[-1] += len(batch["label"])
        if not self._first or batch_idx + 1 == trainer.num_training_batches:
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize()
            self._first = self._first or time.time()
        if batch_idx + 1 == trainer.num_training_batches:
            self.seconds.append(time.perf_counter() - self._start)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.accuracies.append(float(trainer.callback_metrics["val/acc"]))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = {"images": self.images, "seconds": self.seconds, "accuracies": self.accuracies}
        self.path.write_text(json.dumps(found | {"first_step": self._first}))


class Stop(L.Callback):
    """Sends this process a SIGTERM in the second epoch, but not in a run that is resumed."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1 and trainer.ckpt_path is None:
            os.kill(os.getpid(), signal.SIGTERM)
