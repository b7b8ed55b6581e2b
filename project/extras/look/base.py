"""What the four callbacks share: when they draw, where to, and that training never notices."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng

from project.classifier import ImageClassifier
from project.errors import UserError
from project.messages import say


class Look(Callback):
    """Base: draws into TensorBoard after the first epoch, every `every`-th and the last; never changes the training."""

    def __init__(self, every: int, layers: list[str] | None = None) -> None:
        self.every, self.layers = every, layers
        self.writer: Any = None  # TensorBoard's, on rank zero, during a fit
        self._said: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        known = dict(pl_module.net.named_modules())
        for name in self.layers or []:
            if name not in known:
                near = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.0))
                raise UserError(f"{type(self).__name__}.layers: there is no layer {name!r}; the nearest are {near}")
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers:
            self.say("draws nothing, because there is no TensorBoard logger")
        elif trainer.is_global_zero:
            self.writer = loggers[0].experiment

    def due(self, trainer: Trainer) -> bool:
        """Whether this epoch is drawn; the same on all ranks."""
        epoch = trainer.current_epoch + 1
        return epoch in (1, trainer.max_epochs) or epoch % self.every == 0

    def draw(self, trainer: Trainer, tag: str, make: Callable[..., Any], *arguments: Any) -> None:
        """Add the figure that `make` returns to TensorBoard."""
        from project.extras.look.figures import pixels  # matplotlib takes half a second to import

        with self.guarded(tag):
            self.writer.add_image(tag, pixels(make(*arguments)), trainer.global_step, dataformats="HWC")

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """An error in the block is printed, not raised: a night of training is worth more than a picture. Afterwards
        all random number generators are as they were.
        """
        with isolate_rng():
            try:
                yield
            except Exception as error:  # of whatever kind
                self.say(f"leaves out {what}: {error!r:.200}")

    def say(self, line: str) -> None:
        """Print a line, once."""
        if line not in self._said:
            self._said.add(line)
            say(f"look       {type(self).__name__} {line}")
