"""The callback that measures: loss, speed and memory of each optimizer step of a short training."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from project.extras.tune.curve import FEWEST, reach_of

if LINUX := sys.platform == "linux":
    import resource
BLOWN = 4.0  # times the lowest smoothed loss, and above the first ones: a range test has seen enough


class StepRecord(L.Callback):
    """Sets the learning rate of each step, and writes what it measured to a JSON file.

    It runs in Lightning's own loop, so that clipping, accumulation, precision, augmentation and mixing are those of a
    training. Lightning's finder gives all groups one learning rate; here they rise together, in their proportions.
    """

    def __init__(self, out: str, rates: list[float], memory_limit: float | None = None) -> None:
        """
        Args:
            out: The JSON file.
            rates: model.lr of each optimizer step; the training stops early where the loss blows up.
            memory_limit: GB that the process may take on a CPU (Linux).
        """
        self.out, self.rates, self.memory_limit = out, rates, memory_limit
        self.losses, self.speeds = [], []  # of each step; images per second, from the end of the step before
        self._batches = []  # losses of the batches that one optimizer step accumulates
        self._images, self._end, self._lowest = 0, time.perf_counter(), math.inf

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if LINUX and self.memory_limit:
            limit = int(self.memory_limit * 1e9)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * (self.rates[len(self.losses)] / pl_module.recipe.lr)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(outputs["loss"].detach().float())  # its share of the step's loss
        self._images += len(batch["label"])
        if trainer.global_step == len(self.losses):
            return  # gradients still accumulate
        loss = trainer.strategy.reduce(sum(self._batches), reduce_op="mean")
        trainer.should_stop = self.note(float(loss))  # waits for the GPU
        now = time.perf_counter()
        self.speeds.append(self._images / (now - self._end))
        self._batches, self._images, self._end = [], 0, now

    def note(self, loss: float) -> bool:
        """Take the loss of a step; True where it has blown up."""
        if not math.isfinite(loss):
            return True
        self.losses.append(loss)
        age = np.arange(len(self.losses))[::-1]
        smoothed = np.average(self.losses, weights=np.exp(-age / reach_of(len(self.rates))))
        self._lowest = min(self._lowest, smoothed)
        return bool(smoothed > max(BLOWN * self._lowest, np.mean(self.losses[:FEWEST])))  # 4 times near zero is low

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if LINUX else 0
        found = {
            "losses": self.losses,
            "speeds": self.speeds,
            "memory": torch.cuda.max_memory_allocated() if pl_module.device.type == "cuda" else memory,  # bytes
            "optimizer": type(trainer.optimizers[0]).__name__,
            "images": len(trainer.datamodule.splits["train"]),
            "batch": pl_module.batch,
            "scaling": pl_module.recipe.scaling(pl_module.batch)[0],
        }
        if trainer.is_global_zero:
            Path(self.out).write_text(json.dumps(found))
