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
        # Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), in the first half only: a schedule that ends low
        # keeps the rate high in the middle, where the trials that end best have poor scores.
        return Until(
            validations / 2, SuccessiveHalvingPruner(min_resource=math.ceil(validations / 5), reduction_factor=3)
        )
    if kind == "median":
        # Five trials to compare with, and not in the first fifth of the training, which the warm-up takes. After the last
        # validation there is nothing left to save.
        return Until(validations - 1, MedianPruner(n_startup_trials=5, n_warmup_steps=validations // 5 + 1))
    return NopPruner()


class Until(BasePruner):
    """Asks another pruner up to some validation; after it trials go on to their end."""

    def __init__(self, last: float, pruner: BasePruner) -> None:
        self.last, self.pruner = last, pruner

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step is not None and trial.last_step <= self.last and self.pruner.prune(study, trial)
