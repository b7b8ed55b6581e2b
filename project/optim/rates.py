"""The scheduler that applies the schedules: a learning rate for every group at every optimizer step."""

import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from project.errors import UserError
from project.optim.schedules import Interval, PerGroup, Plateau, Schedule


@dataclass(frozen=True)
class Length:
    """How long a run is: optimizer steps in total (None where the end is not known) and per epoch."""

    steps: int | None
    steps_per_epoch: int

    @property
    def epochs(self) -> int | None:
        return self.steps and math.ceil(self.steps / self.steps_per_epoch)


@dataclass(frozen=True)
class Warmup:
    """A linear rise from `start` to 1 over `epochs`, step by step (Goyal et al. 2017, arXiv:1706.02677)."""

    epochs: float = 0.0
    start: float = 0.01

    def steps(self, length: Length) -> float:
        """How many optimizer steps it takes; may be a fraction."""
        return round(self.epochs * length.steps_per_epoch, 6)  # 2.2 * 25 is a little more than 55

    def factor(self, step: int, length: Length) -> float:
        rise = self.steps(length)
        return 1.0 if step >= rise else self.start + (1 - self.start) * step / rise


def assign(schedule: Schedule, names: list[str]) -> list[Schedule]:
    """The schedule of each of the named groups.

    Raises:
        UserError: a pattern of a PerGroup applies to no group, or a group matches no pattern.
    """
    if not isinstance(schedule, PerGroup):
        return [schedule] * len(names)
    found = match_all("model.schedule", schedule.schedules, names)
    if None in found:
        missing = names[found.index(None)]
        raise UserError(f"model.schedule: PerGroup has no schedule for group {missing!r}; add a last one, '.*'")
    return [schedule.schedules[pattern] for pattern in found]


def match_all(key: str, patterns: Collection[str], names: Sequence[str]) -> list[str | None]:
    """For each name the first of the regular expressions that is found in it, None where there is none.

    Raises:
        UserError: a pattern is not a regular expression, or applies to no name; the message starts with the key.
    """
    try:
        found = [next((pattern for pattern in patterns if re.search(pattern, name)), None) for name in names]
    except (re.error, TypeError) as error:
        raise UserError(f"{key}: {[*patterns]}: not a regular expression in quotes ({error})") from error
    for pattern in patterns:
        if pattern not in found:
            raise UserError(f"{key}: {pattern!r} applies to none of {', '.join(names[:20])} (the first match counts)")
    return found


class PlannedRates(LRScheduler):
    """Sets every group's lr to its base lr x warm-up x the factor of its schedule. Stepped after every optimizer step.

    The learning rates depend on the step alone (and the metric, for Plateau), never on earlier learning rates: a
    resumed run has those of an uninterrupted one, and a change of model.lr or model.schedule in between takes effect.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        length: Callable[[], Length],
        interval: Interval | None = None,
        warmup: Warmup = Warmup(),
    ) -> None:
        """
        Args:
            optimizer: Every group has a name, and its base learning rate as lr.
            schedule: One for all groups, or a PerGroup.
            length: Returns the length of the run. Called after the first step, because Lightning knows the length of a
                resumed run only when its data loaders are at the place where it stopped.
            interval: What the schedules count; None takes the usual unit of each.
            warmup: The rise at the start, if there is one.
        """
        self.schedules = assign(schedule, [group["name"] for group in optimizer.param_groups])
        self.length, self.interval, self.warmup = length, interval, warmup
        self.planned_steps: int | None = None  # the length that the resumed run had
        super().__init__(optimizer)

    def rates_at(self, step: int) -> list[float]:
        """The learning rate of every group at an optimizer step, counted from 0.

        Raises:
            UserError: the warm-up is as long as the run, or a schedule that fills the run does not know its end.
        """
        length = self.length() if step else Length(1_000_000, 1)  # the first step is the same for every length
        rise = self.warmup.steps(length)
        if length.steps is not None and length.steps <= rise:
            raise UserError(f"model.warmup: {self.warmup.epochs:g} epochs do not fit into the run; shorten it")
        warm = self.warmup.factor(step, length)
        rates = []
        for base, part in zip(self.base_lrs, self.schedules, strict=True):
            by_epoch = (self.interval or part.interval) == "epoch"
            done, total = (step // length.steps_per_epoch, length.epochs) if by_epoch else (step, length.steps)
            if part.spans_run and total is None:
                raise UserError("model.schedule needs a run with an end: set trainer.max_epochs or max_steps")
            if part.spans_run and rise:
                before = math.ceil(self.warmup.epochs if by_epoch else rise)
                done, total = max(0, done - before), max(1, total - before)
            rates.append(base * warm * part.factor(done, total or 1))
        return rates

    def get_lr(self) -> list[float]:
        return self.rates_at(self.last_epoch)

    def refresh(self) -> None:
        """Apply the learning rates of the current step."""
        rates = self.rates_at(self.last_epoch)
        for group, base, rate in zip(self.optimizer.param_groups, self.base_lrs, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate
        self._last_lr = rates

    @property
    def plateaus(self) -> list[Plateau]:
        """The schedules that monitor a metric, each once."""
        return list({id(part): part for part in self.schedules if isinstance(part, Plateau)}.values())

    def observe(self, metrics: dict[str, float]) -> None:
        """Take the new metrics of an epoch. Call it once per epoch."""
        for plateau in self.plateaus:
            if plateau.monitor in metrics:
                plateau.observe(metrics[plateau.monitor])
        self.refresh()

    def state_dict(self) -> dict[str, Any]:
        """The step and the plateaus' counts; learning rates are computed anew."""
        steps = self.length().steps if self.last_epoch else None
        plateaus = [part.state_dict() for part in self.plateaus]
        return {"step": self.last_epoch, "planned_steps": steps, "plateaus": plateaus}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step; `refresh` applies its learning rates."""
        self.last_epoch, self.planned_steps = state_dict["step"], state_dict["planned_steps"]
        self._step_count = self.last_epoch + 1
        for plateau, state in zip(self.plateaus, state_dict["plateaus"], strict=False):  # a changed schedule has others
            plateau.load_state_dict(state)
