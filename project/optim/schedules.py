"""Learning-rate schedules: a factor on every group's base learning rate as a function of time (advice A13, A16).

They know the length of the run, so that T_max or total_steps need not be given. Time is counted in epochs or optimizer
steps, from 0 at the start of the run. The learning rate is the product

    model.lr  x  the factors of the group  x  warm-up  x  the factor of the schedule

Each factor equals what the scheduler of torch.optim.lr_scheduler named in its docstring does to a learning rate of 1.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    OpenUnitInterval,
    PositiveFloat,
    PositiveInt,
)
from torch.optim.lr_scheduler import ReduceLROnPlateau

from project.errors import UserError

Interval = Literal["epoch", "step"]


class Schedule(ABC):
    """Base class. To add one, write a subclass in any file and give its path."""

    interval = "epoch"  # unit of time (an Interval), unless model.schedule_interval says otherwise
    spans_run = (
        False  # whether it lasts from the end of the warm-up to the end of the run; else it counts from the start
    )

    @abstractmethod
    def factor(self, done: int, total: int) -> float:
        """The factor after `done` of the run's `total` epochs or steps; 0 <= done, and 1 <= total."""


class Constant(Schedule):
    """No change: for a warm-up alone, or for one group of several."""

    def factor(self, done: int, total: int) -> float:
        return 1.0


@dataclass(eq=False)
class Exponential(Schedule):
    """Times gamma after every epoch (ExponentialLR).

    Args:
        gamma: Factor of each epoch (or step, by model.schedule_interval), between 0 and 1.
    """

    gamma: OpenUnitInterval

    def factor(self, done: int, total: int) -> float:
        return self.gamma**done


@dataclass(eq=False)
class Step(Schedule):
    """Times gamma after every `step_size` epochs (StepLR).

    Args:
        step_size: Epochs (or steps, by model.schedule_interval) from one drop to the next.
        gamma: Factor of each drop, between 0 and 1.
    """

    step_size: PositiveInt
    gamma: OpenUnitInterval = 0.1

    def factor(self, done: int, total: int) -> float:
        return self.gamma ** (done // self.step_size)


@dataclass(eq=False)
class MultiStep(Schedule):
    """Times gamma at each milestone (MultiStepLR).

    Args:
        milestones: Epochs (or steps, by model.schedule_interval) after which the learning rate drops.
        gamma: Factor of each drop, between 0 and 1.
    """

    milestones: list[PositiveInt]
    gamma: OpenUnitInterval = 0.1

    def factor(self, done: int, total: int) -> float:
        return self.gamma ** sum(milestone <= done for milestone in self.milestones)


@dataclass(eq=False)
class Cosine(Schedule):
    """Half a cosine from 1 to `end` over the run, or several with warm restarts (Loshchilov & Hutter 2017,
    arXiv:1608.03983, eq. 5; CosineAnnealingLR, and with cycles CosineAnnealingWarmRestarts).

    Args:
        end: The lowest factor, 0 to 1.
        cycles: Equal parts of the run, each of which starts at the full learning rate.
    """

    interval = "step"
    spans_run = True
    end: ClosedUnitInterval = 0.0
    cycles: PositiveInt = 1

    def factor(self, done: int, total: int) -> float:
        place = done * self.cycles / total % 1 if done < total else 1.0
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * place)) / 2


@dataclass(eq=False)
class OneCycle(Schedule):
    """Up to model.lr and down to nearly zero, along cosines (Smith & Topin 2017, arXiv:1708.07120; OneCycleLR, without
    its change of momentum).

    Args:
        pct_start: Share of the run in which the learning rate rises, between 0 and 1.
        div: The first learning rate is the peak divided by this.
        final_div: The last learning rate is the first divided by this.
    """

    interval = "step"
    spans_run = True
    pct_start: OpenUnitInterval = 0.3
    div: PositiveFloat = 25.0
    final_div: PositiveFloat = 10_000.0

    def factor(self, done: int, total: int) -> float:
        first, last = 1 / self.div, 1 / (self.div * self.final_div)
        top = self.pct_start * total - 1  # OneCycleLR counts so that the last step has the last learning rate
        if done == 0:
            return first
        if done <= top:
            return _between(first, 1.0, done / top)
        return _between(1.0, last, min(1.0, (done - top) / (total - 1 - top)))


@dataclass(eq=False)
class Lambda(Schedule):
    """A function of your own, given by its path (LambdaLR).

    Args:
        function: Takes the number of epochs done (or steps, by model.schedule_interval) and returns the factor; a
            dotted path, such as my_package.rates.halve_every_ten, or a class with __call__.
    """

    function: Callable[[int], float]

    def factor(self, done: int, total: int) -> float:
        try:
            factor = float(self.function(done))
            if not 0 <= factor < math.inf:
                raise ValueError(f"it must return 0 or more, not {factor}")
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"model.schedule: Lambda: the function failed for {done}: {reason}") from error
        return factor


class Plateau(Schedule):
    """Times `factor` when a metric has not improved for more than `patience` epochs (ReduceLROnPlateau)."""

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: Literal["min", "max"] | None = None,
        factor: OpenUnitInterval = 0.1,
        patience: NonNegativeInt = 10,
        threshold: NonNegativeFloat = 1e-4,
        cooldown: NonNegativeInt = 0,
        min_factor: ClosedUnitInterval = 0.0,
    ) -> None:
        """
        Args:
            monitor: The metric, as it is logged.
            mode: Whether lower (min) or higher (max) is better; null: lower for a loss, else higher.
            factor: Factor of each drop, between 0 and 1.
            patience: Epochs without improvement before a drop.
            threshold: Relative change that counts as an improvement.
            cooldown: Epochs after a drop that do not count.
            min_factor: The learning rate never falls below this share of model.lr.
        """
        self.monitor = monitor
        self._rate = torch.optim.SGD([torch.zeros(())], lr=1.0)  # torch's own rules, applied to a learning rate of 1
        mode = mode or ("min" if monitor.endswith("loss") else "max")
        self._rule = ReduceLROnPlateau(
            self._rate, mode, factor, patience, threshold, cooldown=cooldown, min_lr=float(min_factor), eps=0.0
        )

    def factor(self, done: int, total: int) -> float:
        return self._rate.param_groups[0]["lr"]

    def observe(self, value: float) -> None:
        """Take the metric of an epoch."""
        self._rule.step(value)

    def state_dict(self) -> dict[str, Any]:
        counts = [self._rule.best, self._rule.num_bad_epochs, self._rule.cooldown_counter]
        return {"factor": self.factor(0, 1), "metric": [self.monitor, self._rule.mode], "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rate.param_groups[0]["lr"] = state["factor"]
        if state["metric"] == [self.monitor, self._rule.mode]:  # the best value of another metric means nothing here
            self._rule.best, self._rule.num_bad_epochs, self._rule.cooldown_counter = state["counts"]


@dataclass(eq=False)
class PerGroup(Schedule):
    """A schedule for each parameter group (A16).

    Args:
        schedules: Regular expression for names of groups -> schedule; the first match counts, and every group needs
            one.
    """

    schedules: dict[str, Schedule]

    def factor(self, done: int, total: int) -> float:
        raise UserError("model.schedule: PerGroup cannot be inside another PerGroup")


def _between(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
