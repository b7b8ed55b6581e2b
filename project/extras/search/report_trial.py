"""A trial of a search reports its score after every validation, and stops when it is pruned (advice A1)."""

import math
from typing import Literal

import lightning as L
import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner

from project.extras.search.storage import open_storage


class ReportTrial(L.Callback):
    """Writes the scores of a fit into a trial of a study, and stops the fit where the pruner says so."""

    def __init__(
        self,
        storage: str,
        study: str,
        trial: int,
        metric: str = "val/acc",
        pruner: Literal["asha", "median", "none"] = "none",
    ) -> None:
        """
        Args:
            storage: Where the study is kept: journal:PATH, or the URL of a database.
            study: Name of the study.
            trial: Number of the trial, which is running; one that has ended is left as it is.
            metric: What is reported, as it is logged in validation.
            pruner: Whether to stop early, judged by the trials so far; never in the second half of the training: under
                a schedule that ends low, the trials that end best have poor scores in the middle (docs/results.md).
        """
        self.storage, self.study, self.number, self.metric, self.pruner = storage, study, trial, metric, pruner
        self.trial: optuna.Trial | None = None  # on the first of several processes
        self.validations = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.check_metric("metric", self.metric)
        if trainer.is_global_zero:
            study = optuna.load_study(study_name=self.study, storage=open_storage(self.storage))
            known = study.trials[self.number]
            if not known.state.is_finished():
                self.trial = optuna.Trial(study, known._trial_id)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self.validations += 1
        stop = self.trial is not None and self._report(trainer)
        if trainer.strategy.broadcast(stop):
            trainer.should_stop = True

    def _report(self, trainer: L.Trainer) -> bool:
        """Whether to stop."""
        done = trainer.global_step / trainer.estimated_stepping_batches  # 0 where only the time is limited
        try:
            self.trial.report(float(trainer.callback_metrics[self.metric]), self.validations)
            if not 0 < done <= 0.5:
                return False
            self.trial.study.pruner = make_pruner(self.pruner, round(self.validations / done))
            if stop := self.trial.should_prune():
                self.trial.set_user_attr("pruned", True)
        except RuntimeError:  # the trial was taken for dead, and another worker has started it again
            return True
        return stop


def make_pruner(kind: str, validations: int) -> BasePruner:
    """The pruner that `--pruner` names, for a training of so many validations; to be asked in its first half only."""
    if kind == "asha":  # its second look would be at 3/5
        return SuccessiveHalvingPruner(min_resource=math.ceil(validations / 5), reduction_factor=3)
    if kind == "median":  # not in the first fifth, which the warm-up takes
        return MedianPruner(n_startup_trials=5, n_warmup_steps=validations // 5 + 1)
    return NopPruner()
