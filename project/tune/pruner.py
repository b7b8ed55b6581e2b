"""Which trials are stopped early (advice A1)."""

import math
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

UNKNOWN = 9  # validations, where the configuration does not tell


def planned_validations(trainer: dict[str, Any]) -> int:
    """How many validations a training of this configuration (the keys of `trainer`) has, if it is not stopped."""
    epochs, interval = trainer["max_epochs"], trainer["val_check_interval"]
    if not epochs or epochs < 0 or trainer["max_steps"] > 0 or isinstance(interval, int):
        return UNKNOWN
    often = int(1 / interval) if interval and interval < 1 else 1
    return max(1, epochs * often // (trainer["check_val_every_n_epoch"] or 1))


def make_pruner(kind: str, validations: int) -> BasePruner:
    """The pruner that `--pruner` names, for trainings of so many validations."""
    if kind == "asha":
        return EarlyHalving(math.ceil(validations / 5), validations / 2)
    if kind == "median":
        # Five trials to compare with, and not in the first fifth of the training, which the warm-up takes.
        return MedianPruner(n_startup_trials=5, n_warmup_steps=validations // 5 + 1)
    return NopPruner()


class EarlyHalving(BasePruner):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) that looks in the first half of a training only.

    A schedule that ends low keeps the rate high in the middle, where the trials that end best have poor scores.
    """

    def __init__(self, first: int, last: float) -> None:
        """
        Args:
            first: The validation at which it looks first; the next is three times as far.
            last: It does not look after this one.
        """
        self.last = last
        self.halving = SuccessiveHalvingPruner(min_resource=max(1, first), reduction_factor=3)

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step is not None and trial.last_step <= max(1, self.last) and self.halving.prune(study, trial)
