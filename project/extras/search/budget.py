"""One budget of trials that any number of processes share through the study (advice A1).

What counts is decided from the trials alone, so that every process comes to the same sum: all but those that were
interrupted or whose worker died. The values of these are queued again, as new trials.
"""

import time
from contextlib import suppress
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

ATTEMPTS = 3  # times that a trial is started whose worker dies: it may be what kills it
SILENT = 3  # missed signs of life after which a worker counts as dead


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is part of the budget: failed by an error of its own, or not failed."""
    return trial.state is not TrialState.FAIL or "error" in trial.user_attrs


@dataclass(frozen=True)
class Budget:
    """
    Attributes:
        study: That all processes share.
        trials: How many may count in all.
        heartbeat: Seconds between two signs of life of a running trial's worker.
    """

    study: optuna.Study
    trials: int
    heartbeat: float

    def left(self) -> int:
        """Trials that are to be started, the queued ones among them."""
        known = self.study.get_trials(deepcopy=False)
        return max(0, self.trials - sum(counts(trial) and trial.state is not TrialState.WAITING for trial in known))

    def running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def claim(self) -> optuna.Trial | None:
        """Start a trial, unless the budget is spent. Exact for any number of processes."""
        self._requeue_lost()
        if self.left() == 0:
            return None
        trial = self.study.ask()
        self.beat(trial)
        known = self.study.get_trials(deepcopy=False)
        if sum(counts(other) for other in known if other.number <= trial.number) <= self.trials:
            return trial
        self.study.tell(trial, state=TrialState.FAIL)  # another process was faster
        return None

    def beat(self, trial: optuna.Trial) -> None:
        trial.set_user_attr("beat", time.time())

    def requeue(self, trial: FrozenTrial, attempt: int = 1) -> None:
        """End a trial, which then no longer counts, and queue its values."""
        with suppress(RuntimeError, ValueError):  # another process was faster
            self.study.tell(trial.number, state=TrialState.FAIL)
            print(f"trial {trial.number}  interrupted: it does not count", flush=True)
            if attempt <= ATTEMPTS:  # else new values take their place
                self.study.enqueue_trial(trial.params, {"attempt": attempt})

    def _requeue_lost(self) -> None:
        """Queue the trials of dead workers, by the clock, which all machines are supposed to agree on."""
        for trial in self.running():
            beat = trial.user_attrs.get("beat", trial.datetime_start.timestamp())
            if time.time() - beat > SILENT * self.heartbeat:
                self.requeue(trial, trial.user_attrs.get("attempt", 1) + 1)
