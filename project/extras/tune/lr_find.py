"""The learning-rate range test (Smith 2017, arXiv:1506.01186, section 3.3): train while the rate rises, and note the loss.

It runs in Lightning's own training loop, so that clipping, accumulation, precision, augmentation and mixing are what they are in a
training. Lightning's finder would give all groups one rate; here they rise together, in their proportions.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from project.errors import UserError
from project.extras.tune.curve import reach_of

BLOWN = 4.0  # times the lowest smoothed loss, and above the first ones: the test has seen enough
HELD = (
    "_lightning_module",
    "_model",
    "_optimizers",
    "_lightning_optimizers",
    "lr_scheduler_configs",
)  # by a trainer's strategy
METRICS = ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics")
FIRST = 5  # steps whose mean loss is the first one


@dataclass
class RangeTest:
    """What a test measured: the rate, as the model's one learning rate, and the loss of each optimizer step; and why it stopped."""

    planned: int
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # finite
    optimizer: str = ""  # name of its class
    stopped: str = ""  # empty after all planned steps


class RateSweep(L.Callback):
    """Raises the rates of all groups by one factor a step, and notes the losses."""

    def __init__(self, lr: float, rates: Sequence[float]) -> None:
        """
        Args:
            lr: The model's learning rate, in proportion to which its groups were built.
            rates: What that learning rate is to be at each optimizer step.
        """
        self.lr, self.rates = lr, rates
        self.result = RangeTest(len(rates))
        self._base: list[float] = []
        self._batches: list[Tensor] = []  # losses of the batches that one optimizer step accumulates
        self._weighted = self._weights = 0.0
        self._best = math.inf

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(trainer.optimizers[0], torch.optim.Rprop):
            raise UserError("model.optimizer: Rprop sizes every step by itself, so there is no rate to find")
        self.result.optimizer = type(trainer.optimizers[0]).__name__
        # A scheduler has put the rate of its first step in force, and keeps the one of before as initial_lr.
        self._base = [float(group.get("initial_lr", group["lr"])) for group in trainer.optimizers[0].param_groups]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        rate = self.rates[min(trainer.global_step, len(self.rates) - 1)]
        for group, base in zip(trainer.optimizers[0].param_groups, self._base, strict=True):
            group["lr"] = base * (rate / self.lr)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        self._batches.append(loss.detach().float() * trainer.accumulate_grad_batches)  # Lightning has divided it
        if trainer.global_step == len(self.result.losses):
            return  # gradients still accumulate
        mean = sum(self._batches) / len(self._batches)
        self._batches = []
        self._note(trainer, float(trainer.strategy.reduce(mean, reduce_op="mean")))

    def _note(self, trainer: L.Trainer, loss: float) -> None:
        rate = self.rates[len(self.result.losses)]
        if not math.isfinite(loss):
            self.result.stopped = f"the loss was {loss} at {rate:.3g}"
            trainer.should_stop = True
            return
        self.result.rates.append(rate)
        self.result.losses.append(loss)
        keep = math.exp(
            -1 / reach_of(len(self.rates))
        )  # a running mean, divided by its weights: it begins without a bias
        self._weighted, self._weights = keep * self._weighted + loss, keep * self._weights + 1
        smoothed = self._weighted / self._weights
        self._best = min(self._best, smoothed)
        first = sum(self.result.losses[:FIRST]) / len(self.result.losses[:FIRST])
        if smoothed > max(
            BLOWN * self._best, first
        ):  # of an easy task, whose loss is near zero, 4 times that is still low
            self.result.stopped = f"at {rate:.3g} the loss was {BLOWN:.0f} times its lowest"
            trainer.should_stop = True


def range_test(
    trainer: L.Trainer,
    callbacks: list[L.Callback],
    model: L.LightningModule,
    data: L.LightningDataModule,
    lr: float,
    rates: Sequence[float],
) -> RangeTest:
    """Train a model while its rate rises. The model is trained: give a copy. Trainer and random numbers stay what they are.

    Args:
        trainer: Its loggers, callbacks and validation do not run.
        callbacks: Those that do.
        model: With rates that nothing else changes.
        data: Repeated as often as it takes.
        lr: The learning rate for which the model builds its groups.
        rates: What that rate is to be at each step of the optimizer.
    """
    sweep = RateSweep(lr, rates)
    with isolate_rng(), borrowed(trainer, [*callbacks, sweep], len(rates)):
        trainer.fit(model, datamodule=data)
    return sweep.result


@contextmanager
def borrowed(trainer: L.Trainer, callbacks: list[L.Callback], steps: int) -> Iterator[None]:
    """Let a trainer make that many optimizer steps (-1: until it is stopped) with these callbacks, without loggers or validation;
    then put it back as it was.
    """
    before, loggers, loop, validate = trainer.callbacks, trainer.loggers, trainer.fit_loop, trainer.limit_val_batches
    plugin = trainer.precision_plugin.state_dict()  # the scale of 16-mixed
    # Else a validation without a model would take the one that was tested, which would also stay in memory.
    parts = (
        (trainer.strategy, HELD),
        (trainer._logger_connector, METRICS),
        (trainer.state, tuple(vars(trainer.state))),
    )
    held = [(part, name, getattr(part, name)) for part, names in parts for name in names]
    trainer.callbacks, trainer.loggers, trainer.limit_val_batches = callbacks, [], 0
    trainer.fit_loop = type(loop)(trainer, min_epochs=0, max_epochs=-1)
    trainer.fit_loop.epoch_loop = type(loop.epoch_loop)(trainer, max_steps=steps)
    try:
        yield
    finally:
        trainer.callbacks, trainer.loggers, trainer.fit_loop, trainer.limit_val_batches = (
            before,
            loggers,
            loop,
            validate,
        )
        trainer.precision_plugin.load_state_dict(plugin)
        for part, name, value in held:
            setattr(part, name, value)
        trainer.should_stop = False
