"""What the four callbacks share: when they draw, where to, and that training never notices."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from project.data.memory import FileImages, Images
from project.extras.look.watch import check_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Look(L.Callback):
    """Base: draws into TensorBoard after the first epoch, every `every`-th and the last; never changes the training."""

    def __init__(self, every: int, layers: list[str] | None = None) -> None:
        self.every, self.layers = every, layers
        self.hooks = ExitStack()  # on the network, from one call of the callback to another
        self._said: set[str] = set()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        check_layers(pl_module.net, self.layers or [])
        if self.writer(trainer) is None:
            self.say(trainer, "draws nothing, because there is no TensorBoard logger")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.hooks.close()

    def due(self, trainer: L.Trainer) -> bool:
        """Whether this epoch is drawn; the same on all ranks."""
        epoch = trainer.current_epoch + 1
        return epoch in (1, trainer.max_epochs) or epoch % self.every == 0

    def writer(self, trainer: L.Trainer) -> SummaryWriter | None:
        """TensorBoard's, on rank zero."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        return loggers[0].experiment if loggers and trainer.is_global_zero else None

    def say(self, trainer: L.Trainer, line: str) -> None:
        """Print a line, once."""
        if trainer.is_global_zero and line not in self._said:
            self._said.add(line)
            print(f"look       {type(self).__name__} {line}", flush=True)

    def draw(self, trainer: L.Trainer, tag: str, make: Callable[[], "Figure"]) -> None:
        """Add a figure to TensorBoard."""
        from project.extras.look.figures import pixels  # matplotlib takes half a second to import

        with self.guarded(trainer, tag):
            self.writer(trainer).add_image(tag, pixels(make()), trainer.global_step, dataformats="HWC")

    @contextmanager
    def guarded(self, trainer: L.Trainer, what: str) -> Iterator[None]:
        """An error in the block is printed, not raised: a night of training is worth more than a picture. Afterwards
        all random number generators are as they were.
        """
        with isolate_rng():
            try:
                yield
            except Exception as error:  # of whatever kind
                self.say(trainer, f"leaves out {what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def pictures(images: Images, keys: list[int]) -> tuple[Tensor, list[int]]:
    """Images by their keys, uint8 (N, C, H, W), whole (not cropped at random), and their labels."""
    if isinstance(images, FileImages):
        images = copy.copy(images)
        images.area = None
    batch = images.__getitems__([(0, key) for key in keys])
    return batch["image"], batch["label"].tolist()
