"""A callback that times the training epochs of `fit`, for `benchmarks.speed` and `benchmarks.peers`.

    EPOCH_TIMES=times.json python -m project fit --config configs/folder.yaml --data.root FOLDER \
        --trainer.callbacks+=benchmarks.timing.EpochTimer

It measures from the start of each training epoch to the end of its last batch, without validation and checkpoints, on
any machine and at no cost (on a GPU it waits once an epoch for the last step to end). At the end of training it writes
{"images": [...], "seconds": [...]}, one number for each epoch, to the file that EPOCH_TIMES names.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch


class EpochTimer(L.Callback):
    """Counts images and seconds of every training epoch."""

    def __init__(self) -> None:
        self.path = Path(os.environ["EPOCH_TIMES"])
        self.images: list[int] = []
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.images.append(0)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images[-1] += len(batch["label"])
        if batch_idx + 1 == trainer.num_training_batches:
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self._start)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.path.write_text(json.dumps({"images": self.images, "seconds": self.seconds}))
