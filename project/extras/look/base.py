"""What the four callbacks that look at a training share: when they draw, where to, and that nothing else notices."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from project.data.memory import FileImages, Images
from project.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Look(L.Callback):
    """Base: draws into TensorBoard after the first epoch, after every `every`-th and after the last; never changes the training."""

    def __init__(self, every: int) -> None:
        if every < 1:
            raise UserError(f"{type(self).__name__}: every must be 1 or more epochs, not {every}")
        self.every = every
        self._said: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.fast_dev_run and self.writer(trainer) is None:
            self.say(trainer, "draws nothing, because there is no TensorBoard logger")

    def due(self, trainer: L.Trainer, since: int | None = None) -> bool:
        """Whether this epoch, or one from `since` (the first is 1) to it, is drawn; the same on all ranks."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return False
        now = trainer.current_epoch + 1
        return any(
            epoch in (1, trainer.max_epochs) or epoch % self.every == 0 for epoch in range(since or now, now + 1)
        )

    def writer(self, trainer: L.Trainer) -> SummaryWriter | None:
        """TensorBoard's, on rank zero."""
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return None
        return next((logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)), None)

    def say(self, trainer: L.Trainer, line: str) -> None:
        """Print a line, once."""
        if trainer.is_global_zero and line not in self._said:
            self._said.add(line)
            print(f"look       {type(self).__name__} {line}", flush=True)

    def draw(self, trainer: L.Trainer, tag: str, make: Callable[[], "Figure"]) -> None:
        """Add a figure to TensorBoard. One that cannot be drawn is left out with its reason: a night of training is worth more."""
        from project.extras.look.figures import (
            pixels,
        )  # here, because matplotlib takes half a second that only a fit needs

        writer = self.writer(trainer)
        if writer is None:
            return
        with self.guarded(trainer, tag):
            writer.add_image(tag, pixels(make()), trainer.global_step, dataformats="HWC")

    @contextmanager
    def guarded(self, trainer: L.Trainer, what: str) -> Iterator[None]:
        """What fails in the block is left out with its reason."""
        try:
            yield
        except Exception as error:  # of whatever kind
            self.say(trainer, f"leaves out {what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


@contextmanager
def unnoticed(device: torch.device) -> Iterator[None]:
    """All generators of random numbers are afterwards as they were before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (a user's code may draw from it)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def pictures(images: Images, keys: list[int]) -> tuple[Tensor, list[int]]:
    """Images by their keys, uint8 (N, C, H, W), whole (not cropped at random), and their labels."""
    if isinstance(images, FileImages) and images.area is not None:
        images = copy.copy(images)
        images.area = None
    batch = images.__getitems__([(0, key) for key in keys])
    return batch["image"], batch["label"].tolist()
