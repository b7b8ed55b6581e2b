"""The scheduler that puts the schedules in force: one rate for every group at every optimizer step."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from project.errors import UserError
from project.optim.schedules import Interval, PerGroup, Plateau, Schedule


@dataclass(frozen=True)
class Length:
    """How long a run is: optimizer steps in all, None where nobody knows the end, and in one epoch."""

    steps: int | None
    steps_per_epoch: int

    @property
    def epochs(self) -> int | None:
        return None if self.steps is None else max(1, -(-self.steps // self.steps_per_epoch))


@dataclass(frozen=True)
class Warmup:
    """A linear rise from `start` to 1 over `epochs`, step by step (Goyal et al. 2017, arXiv:1706.02677, section 2.2)."""

    epochs: float = 0.0
    start: float = 0.01

    def steps(self, length: Length) -> float:
        """Its optimizer steps; fractions count."""
        return round(self.epochs * length.steps_per_epoch, 6)  # 2.2 * 25 is a little more than 55

    def factor(self, step: int, length: Length) -> float:
        rise = self.steps(length)
        return 1.0 if step >= rise else self.start + (1 - self.start) * step / rise


def assign(schedule: Schedule, names: list[str]) -> list[Schedule]:
    """The schedule of each group.

    Args:
        schedule: One for all, or a PerGroup.
        names: Of the groups.

    Raises:
        UserError: for a pattern that no group has, or a group that no pattern has.
    """
    if not isinstance(schedule, PerGroup):
        return [schedule] * len(names)
    found: list[Schedule] = []
    used = set()
    for name in names:
        pattern = next((pattern for pattern in schedule.schedules if matches("model.schedule", pattern, name)), None)
        if pattern is None:
            raise UserError(
                f"model.schedule: PerGroup has no schedule for group {name!r}; add one, at the end '.*' for the rest"
            )
        used.add(pattern)
        found.append(schedule.schedules[pattern])
    for pattern in schedule.schedules:
        if pattern not in used:
            raise UserError(
                f"model.schedule: PerGroup: {pattern!r} decides no group; the groups are {', '.join(names)}"
            )
    return found


def matches(key: str, pattern: str, name: str) -> bool:
    """Whether a regular expression is found in a name.

    Raises:
        UserError: when it is none.
    """
    if not isinstance(pattern, str):
        raise UserError(f"{key}: {pattern!r} is no regular expression but a number; put it in quotes")
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(f"{key}: {pattern!r} is no regular expression: {error}") from error


class PlannedRates(LRScheduler):
    """Sets every group's rate to its base rate x warm-up x the factor of its schedule. Stepped after every optimizer step.

    The rates are a function of the step alone (and of the metric, for Plateau), never of the rates before: a resumed run has the
    rates of an uninterrupted one, and a rate or schedule that was changed in between takes effect.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        length: Callable[[], Length],
        interval: Interval | None = None,
        warmup: Warmup | None = None,
    ) -> None:
        """
        Args:
            optimizer: Whose rates to change; every group has a name and its base rate as lr.
            schedule: One for all groups, or a PerGroup.
            length: Says how long the run is. It is asked after the first step, because Lightning knows the length of a resumed run
                only when its data loaders are at the place where it stopped.
            interval: What the schedules count; null takes the usual of each.
            warmup: The rise at the start, if there is one.
        """
        self.schedules = assign(schedule, [group["name"] for group in optimizer.param_groups])
        self.length, self.interval, self.warmup = length, interval, warmup or Warmup()
        self.planned_steps: int | None = None  # the length that the checkpoint was made for
        super().__init__(optimizer)

    def rates_at(self, step: int) -> list[float]:
        """The rate of every group at an optimizer step, counted from 0."""
        if step == 0:  # the same for every length
            start = self.warmup.start if self.warmup.epochs else 1.0
            return [
                base * start * part.factor(0, 1_000_000)
                for base, part in zip(self.base_lrs, self.schedules, strict=True)
            ]
        length = self.length()
        rise = self.warmup.steps(length)
        if length.steps is not None and 0 < length.steps <= rise:
            run = length.steps / length.steps_per_epoch
            raise UserError(
                f"model.warmup of {self.warmup.epochs:g} epochs leaves nothing of a run of {run:g}; shorten it"
            )
        epoch = step // length.steps_per_epoch
        warm = self.warmup.factor(step, length)
        rates = []
        for base, part in zip(self.base_lrs, self.schedules, strict=True):
            by_epoch = (self.interval or part.interval) == "epoch"
            done, total = (epoch, length.epochs) if by_epoch else (step, length.steps)
            if part.spans_run and total is None:
                name = type(part).__name__
                raise UserError(
                    f"model.schedule: {name} needs to know the end of the run: set trainer.max_epochs or max_steps"
                )
            if part.spans_run and self.warmup.epochs:
                before = math.ceil(self.warmup.epochs if by_epoch else rise)
                done, total = max(0, done - before), max(1, total - before)
            rates.append(base * warm * part.factor(done, total or 1))
        return rates

    def get_lr(self) -> list[float]:
        return self.rates_at(self.last_epoch)

    def refresh(self) -> None:
        """Put the rates of the present step in force."""
        rates = self.rates_at(self.last_epoch)
        for group, base, rate in zip(self.optimizer.param_groups, self.base_lrs, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate
        self._last_lr = rates

    @property
    def plateaus(self) -> list[Plateau]:
        """The schedules that wait for a metric, each once."""
        return list({id(part): part for part in self.schedules if isinstance(part, Plateau)}.values())

    def observe(self, metrics: dict[str, float]) -> None:
        """The metrics of an epoch, those that are new. Call it once an epoch."""
        for plateau in self.plateaus:
            if plateau.monitor in metrics:
                plateau.observe(metrics[plateau.monitor])
        if self.plateaus:
            self.refresh()

    def state_dict(self) -> dict[str, Any]:
        """The step and the plateaus' counts; no rate, which is worked out anew."""
        steps = self.length().steps if self.last_epoch else None
        return {
            "step": self.last_epoch,
            "planned_steps": steps,
            "plateaus": [part.state_dict() for part in self.plateaus],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the step; `refresh` puts its rates in force."""
        self.last_epoch, self.planned_steps = state_dict["step"], state_dict["planned_steps"]
        self._step_count = self.last_epoch + 1
        if len(self.plateaus) == len(state_dict["plateaus"]):  # else the schedule has been changed
            for plateau, state in zip(self.plateaus, state_dict["plateaus"], strict=True):
                plateau.load_state_dict(state)
