"""Makes a training step's random numbers a function of its place in the run: a resumed run repeats them exactly."""

import hashlib
from typing import Any

import lightning as L
import torch


class StepSeed(L.Callback):
    """Seeds torch before each training step from (seed, rank, epoch, batch): for dropout, mixup and the like."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        name = f"{self.seed}/{trainer.global_rank}/{trainer.current_epoch}/{batch_idx}".encode()
        seed = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big")
        # A small part of the cost of torch.manual_seed, which visits every backend.
        torch.default_generator.manual_seed(seed)
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.manual_seed(seed)
