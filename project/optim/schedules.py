"""Learning-rate schedules that know the length of the run, so that nobody types T_max or total_steps (advice A13, A16)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from project.errors import UserError


class Schedule(ABC):
    """Base of our schedules: a factor on every group's base rate, as a function of how much of the run is over.

    They are stepped after every optimizer step.
    """

    @abstractmethod
    def factor(self, done: float) -> float:
        """The factor when the share `done` (0 to 1) of the run's optimizer steps has been taken."""

    def build(self, optimizer: Optimizer, total_steps: Callable[[], int]) -> LambdaLR:
        """A scheduler that follows `factor` over the whole run, for every parameter group.

        Args:
            optimizer: Whose rates to change.
            total_steps: Says how many optimizer steps the run has. It is asked after the first step, because Lightning knows the
                length of a resumed run only when its data loaders are at the place where it stopped.
        """

        def factor_at(step: int) -> float:
            return self.factor(min(step / max(1, total_steps() - 1), 1.0) if step else 0.0)

        return LambdaLR(optimizer, factor_at)


class Cosine(Schedule):
    """Cosine decay from the base rate to its `end` share (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5)."""

    def __init__(self, end: float = 0.0) -> None:
        """
        Args:
            end: The last factor, 0 to below 1.
        """
        if not 0 <= end < 1:
            raise UserError(f"Cosine: end must be at least 0 and below 1 (a share of model.lr), not {end}")
        self.end = end

    def factor(self, done: float) -> float:
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2


class OneCycle(Schedule):
    """Up to the base rate and down to nearly zero, on cosines (Smith & Topin 2017, arXiv:1708.07120). model.lr is the peak."""

    def __init__(self, pct_start: float = 0.3, div: float = 25.0, final_div: float = 10_000.0) -> None:
        """
        Args:
            pct_start: Share of the run in which the rate rises, above 0 and below 1.
            div: The first rate is the peak over this.
            final_div: The last rate is the first over this.
        """
        if not 0 < pct_start < 1:
            raise UserError(f"OneCycle: pct_start must lie between 0 and 1 (a share of the run), not {pct_start}")
        if div < 1 or final_div < 1:
            raise UserError(f"OneCycle: div and final_div must be 1 or more, not {div} and {final_div}")
        self.pct_start, self.div, self.final_div = pct_start, div, final_div

    def factor(self, done: float) -> float:
        first, last = 1 / self.div, 1 / (self.div * self.final_div)
        if done < self.pct_start:
            return _between(first, 1.0, done / self.pct_start)
        return _between(1.0, last, (done - self.pct_start) / (1 - self.pct_start))


def _between(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
