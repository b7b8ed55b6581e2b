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
    """A linear rise from `start` to 1 over `epochs`, step by step (Goyal et al. 2017, arXiv:1706.02677, sec. 2.2)."""

    epochs: float = 0.0
    start: float = 0.01


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
        warmup: Warmup | None = None,
    ) -> None:
        """
        Args:
            optimizer: Every group has a name, and its base learning rate as lr.
            schedule: One for all groups, or a PerGroup.
            length: Of the run; called after the first step, because of a resumed run Lightning does not know it before.
            interval: What the schedules count; None takes the usual unit of each.
            warmup: None for no warm-up.

        Raises:
            UserError: a pattern of a PerGroup applies to no group, or a group matches no pattern.
        """
        names = [group["name"] for group in optimizer.param_groups]
        self.schedules = [schedule] * len(names)
        if isinstance(schedule, PerGroup):
            found = match_all("model.schedule", schedule.schedules, names)
            if None in found:
                raise UserError(f"model.schedule: no schedule for group {names[found.index(None)]!r}; add one for '.*'")
            self.schedules = [schedule.schedules[pattern] for pattern in found]
        self.length, self.interval, self.warmup = length, interval, warmup or Warmup()
        self.planned_steps: int | None = None  # the length that the resumed run had
        super().__init__(optimizer)

    def rates_at(self, step: int) -> list[float]:
        """The learning rate of every group at an optimizer step, counted from 0.

        Raises:
            UserError: the warm-up is as long as the run, or a schedule that fills the run does not know its end.
        """
        length = self.length() if step else Length(1_000_000, 1)  # the first step is the same for every length
        epochs, start = self.warmup.epochs, self.warmup.start
        rise = round(epochs * length.steps_per_epoch, 6)  # steps; 2.2 * 25 is a little more than 55
        if length.steps is not None and length.steps <= rise:
            raise UserError(f"model.warmup: {epochs:g} epochs do not fit into the run; shorten it")
        warm = start + (1 - start) * step / rise if step < rise else 1.0
        rates = []
        for base, part in zip(self.base_lrs, self.schedules, strict=True):
            by_epoch = self.interval == "epoch" or not (self.interval or part.spans_run)
            done, total = (step // length.steps_per_epoch, length.epochs) if by_epoch else (step, length.steps)
            if part.spans_run:
                if total is None:
                    raise UserError("model.schedule needs a run with an end: set trainer.max_epochs or max_steps")
                before = math.ceil(epochs if by_epoch else rise)
                done, total = max(0, done - before), max(1, total - before)
            rates.append(base * warm * part.factor(done, total or 1))
        return rates

    def get_lr(self) -> list[float]:
        return self.rates_at(self.last_epoch)

    def refresh(self) -> None:
        """Apply the learning rates of the current step."""
        self._last_lr = self.get_lr()
        for group, base, rate in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True):
            group["initial_lr"], group["lr"] = base, rate

    @property
    def plateaus(self) -> list[Plateau]:
        """The schedules that monitor a metric, each once."""
        return list(dict.fromkeys(part for part in self.schedules if isinstance(part, Plateau)))

    def observe(self, metrics: dict[str, Any]) -> None:
        """Take the new metrics of an epoch, numbers or tensors of one. Call it once per epoch."""
        for plateau in self.plateaus:
            if plateau.monitor in metrics:
                plateau.observe(metrics[plateau.monitor])
        self.refresh()

    def state_dict(self) -> dict[str, Any]:
        """The step and the plateaus' counts; learning rates are computed anew."""
        steps, plateaus = self.length().steps if self.last_epoch else None, [p.state_dict() for p in self.plateaus]
        return {"step": self.last_epoch, "planned_steps": steps, "plateaus": plateaus}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step; `refresh` applies its learning rates."""
        self.last_epoch, self.planned_steps = state_dict["step"], state_dict["planned_steps"]
        self._step_count = self.last_epoch + 1
        for plateau, state in zip(self.plateaus, state_dict["plateaus"], strict=False):  # a changed schedule has others
            plateau.load_state_dict(state)
