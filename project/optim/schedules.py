"""Learning-rate schedules: a factor on every group's base learning rate as a function of time (advice A13, A16).

They know the length of the run. Time is counted from 0 at its start, in epochs or optimizer steps: "epochs" below are
steps with model.schedule_interval=step. Each factor is what torch's scheduler, in parentheses, does to a rate of 1.
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

    spans_run = False  # counts epochs from the start; True: steps, from the end of the warm-up to the end of the run

    @abstractmethod
    def factor(self, done: int, total: int) -> float:
        """The factor after `done` of the run's `total` epochs or steps; 0 <= done, and 1 <= total."""


class Constant(Schedule):
    """No change: for a warm-up alone, or for one group of several."""

    def factor(self, done: int, total: int) -> float:
        return 1.0


@dataclass
class Exponential(Schedule):
    """Times gamma after every epoch (ExponentialLR).

    Args:
        gamma: Factor of each epoch, between 0 and 1.
    """

    gamma: OpenUnitInterval

    def factor(self, done: int, total: int) -> float:
        return self.gamma**done


@dataclass
class Step(Schedule):
    """Times gamma after every `step_size` epochs (StepLR).

    Args:
        step_size: Epochs from one drop to the next.
        gamma: Factor of each drop, between 0 and 1.
    """

    step_size: PositiveInt
    gamma: OpenUnitInterval = 0.1

    def factor(self, done: int, total: int) -> float:
        return self.gamma ** (done // self.step_size)


@dataclass
class MultiStep(Schedule):
    """Times gamma at each milestone (MultiStepLR).

    Args:
        milestones: Epochs after which the learning rate drops.
        gamma: Factor of each drop, between 0 and 1.
    """

    milestones: list[PositiveInt]
    gamma: OpenUnitInterval = 0.1

    def factor(self, done: int, total: int) -> float:
        return self.gamma ** sum(milestone <= done for milestone in self.milestones)


@dataclass
class Linear(Schedule):
    """Down a straight line over the run (LinearLR), as in the fast trainings of Jordan 2024 (arXiv:2404.00498).

    Args:
        end: The factor at the end, 0 to 1.
    """

    spans_run = True
    end: ClosedUnitInterval = 0.0

    def factor(self, done: int, total: int) -> float:
        return 1.0 + (self.end - 1.0) * min(1.0, done / total)


@dataclass
class Cosine(Schedule):
    """Half a cosine over the run, or several (arXiv:1608.03983, eq. 5; CosineAnnealingLR, CosineAnnealingWarmRestarts).

    Args:
        end: The lowest factor, 0 to 1.
        cycles: Equal parts of the run, each of which starts at the full learning rate.
    """

    spans_run = True
    end: ClosedUnitInterval = 0.0
    cycles: PositiveInt = 1

    def factor(self, done: int, total: int) -> float:
        return _between(1.0, self.end, done * self.cycles / total % 1 if done < total else 1.0)


@dataclass
class OneCycle(Schedule):
    """Up to model.lr and down to nearly 0 along cosines, the momentum unchanged (OneCycleLR with cycle_momentum=False).

    After Smith & Topin 2017 (arXiv:1708.07120), who rise and fall along straight lines; the cosines are fastai's.

    Args:
        pct_start: Share of the run in which the learning rate rises, between 0 and 1.
        div: The first learning rate is the peak divided by this.
        final_div: The last learning rate is the first divided by this.
    """

    spans_run = True
    pct_start: OpenUnitInterval = 0.3
    div: PositiveFloat = 25.0
    final_div: PositiveFloat = 10_000.0

    def factor(self, done: int, total: int) -> float:
        first, last = 1 / self.div, 1 / (self.div * self.final_div)
        top = self.pct_start * total - 1  # as OneCycleLR counts: the last step has the last learning rate
        if done == 0:
            return first
        if done <= top:
            return _between(first, 1.0, done / top)
        return _between(1.0, last, min(1.0, (done - top) / (total - 1 - top)))


@dataclass
class Lambda(Schedule):
    """A function of your own (LambdaLR).

    Args:
        function: Dotted path, such as my_package.rates.halve_every_ten: epochs done -> factor, 0 or more.
    """

    function: Callable[[int], float]

    def factor(self, done: int, total: int) -> float:
        try:
            factor = float(self.function(done))
            if not 0 <= factor < math.inf:
                raise ValueError(f"it must return 0 or more, not {factor}")
        except Exception as error:
            raise UserError(f"model.schedule: Lambda: the function failed for {done}: {error}") from error
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
            threshold: Relative change that counts as an improvement, 0 or more.
            cooldown: Epochs after a drop that do not count.
            min_factor: The learning rate never falls below this share of model.lr.
        """
        self.monitor = monitor
        self._rate = torch.optim.SGD([torch.zeros(())], lr=1.0)  # torch's own rules, applied to a learning rate of 1
        mode = mode or ("min" if monitor.endswith("loss") else "max")
        self._rule = ReduceLROnPlateau(self._rate, mode, factor, patience, threshold, "rel", cooldown, min_factor, 0.0)

        self.observe = self._rule.step  # takes the metric of an epoch

    def factor(self, done: int, total: int) -> float:
        return self._rate.param_groups[0]["lr"]

    def state_dict(self) -> dict[str, Any]:
        # Plain numbers: torch.load(weights_only=True) refuses jsonargparse's types, which the arguments may have.
        counts = [self._rule.best, self._rule.num_bad_epochs, int(self._rule.cooldown_counter)]
        return {"factor": float(self.factor(0, 1)), "metric": [self.monitor, self._rule.mode], "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rate.param_groups[0]["lr"] = state["factor"]
        if state["metric"] == [self.monitor, self._rule.mode]:  # the best value of another metric means nothing here
            self._rule.best, self._rule.num_bad_epochs, self._rule.cooldown_counter = state["counts"]


@dataclass
class PerGroup(Schedule):
    """A schedule for each parameter group (A16).

    Args:
        schedules: Regular expression for names of groups -> schedule; the first match counts, every group needs one.
    """

    schedules: dict[str, Schedule]

    def factor(self, done: int, total: int) -> float:
        raise UserError("model.schedule: PerGroup cannot be inside another PerGroup")


def _between(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
