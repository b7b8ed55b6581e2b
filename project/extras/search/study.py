"""The study of a search: one budget that any number of processes share, in a database or a journal file (advice A1).

What counts is decided from the trials alone, so that every process comes to the same sum: finished and pruned trials count, so do
those that failed by an error of their own, and those that are running. One that was interrupted, or whose worker died, does not:
the same values are put into the queue again.
"""

import random
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from project.errors import UserError
from project.extras.search.space import Space, Values
from project.extras.search.storage import already_there, guarded, open_storage, shown
from project.extras.search.trial import RESULT, read_json
from project.extras.search.worker import gone, whoami

ATTRIBUTE = "project"  # of the study: what the search was begun with
RETRIES = 3  # times that a trial is begun again after its worker died: it may be what killed it
SILENT = 3  # missed signs of life after which a worker counts as dead


class Study:
    """An Optuna study with our budget, our signs of life and our bookkeeping."""

    def __init__(
        self, storage: str, name: str, direction: str, sampler: BaseSampler, pruner: Any, heartbeat: float = 60
    ) -> None:
        """
        Args:
            storage: URL of a database, or journal:PATH.
            name: Of the study.
            direction: maximize or minimize.
            sampler: Draws the values.
            pruner: Stops trials early.
            heartbeat: Seconds between two signs of life of a running trial.

        Raises:
            UserError: for a storage that cannot be opened.
        """
        self.where, self.name, self.heartbeat = shown(storage), name, heartbeat
        self._seen: dict[
            int, tuple[Any, float]
        ] = {}  # running elsewhere: number -> (last sign of life, when it was first seen)
        self._beaten = 0.0
        self._open(storage, direction, sampler, pruner)

    @guarded
    def _open(self, storage: str, direction: str, sampler: BaseSampler, pruner: Any) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        for attempt in range(6):  # another worker may make the tables, or the study, in the same moment
            try:
                opened = open_storage(storage)
                self.optuna = optuna.create_study(
                    storage=opened,
                    study_name=self.name,
                    direction=direction,
                    sampler=sampler,
                    pruner=pruner,
                    load_if_exists=True,
                )
                return
            except (DuplicatedStudyError, SQLAlchemyError, StorageInternalError) as error:
                if attempt == 5 or not already_there(error):
                    raise
                time.sleep(0.2 + random.random())

    @property
    def new(self) -> bool:
        """Whether no search has begun in it."""
        return ATTRIBUTE not in self.optuna.user_attrs

    @guarded
    def begin(self, setup: dict[str, Any], trials: int, join: bool) -> None:
        """Record what is searched, or see that it is what the study was begun with.

        Raises:
            UserError: when it is not, when the study is not ours, or is there and was not asked for.
        """
        then, known = self.optuna.user_attrs.get(ATTRIBUTE), self.optuna.get_trials(deepcopy=False)
        if then is None and known:
            raise UserError(
                f"storage: {self.where} has a study {self.name!r} that this command did not make; choose another --name"
            )
        begun = any(counts(trial) or trial.state is TrialState.WAITING for trial in known)
        if begun or (
            then is not None and join and not known
        ):  # a command that was refused leaves nothing to go on with
            if not join:
                raise UserError(
                    f"name: there is a search {self.name!r} already: --resume goes on with it, --name begins another"
                )
            if lines := differences(then, setup):
                raise UserError(
                    f"the search {self.name!r} was begun with other settings: {'; '.join(lines)}; --name begins another"
                )
        self.optuna.set_user_attr(ATTRIBUTE, setup)
        self.optuna.set_user_attr("trials", trials)

    @guarded
    def trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)

    @guarded
    def left(self) -> int:
        """Trials that may still begin."""
        return self.optuna.user_attrs["trials"] - sum(map(counts, self.trials()))

    @guarded
    def reserve(self, space: Space, folder: Path) -> tuple[optuna.Trial, Values] | None:
        """Begin a trial, unless the budget is spent. Exact for any number of processes.

        A new trial keeps its place when it is within the budget by its number; one from the queue, whose number is old, when all
        that count are. Of two that come at once, at most one stays over what is left.
        """
        if self.left() <= 0:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self.optuna.ask()
        trial.set_user_attr("worker", whoami())
        again = "redo_of" in trial.user_attrs
        rank = sum(counts(other) for other in self.trials() if again or other.number <= trial.number)
        if rank > self.optuna.user_attrs["trials"]:
            self.optuna.tell(trial.number, state=TrialState.FAIL)
            if again:
                self._again(self.optuna.trials[trial.number])
            return None
        trial.set_user_attr("folder", str(folder.absolute() / f"trial_{trial.number:04d}"))
        return trial, space.suggest(trial)

    @guarded
    def report(self, trial: optuna.Trial, step: int, value: float) -> bool:
        """Hand on a score; returns whether the trial is to be pruned, which one whose score is not a number always is."""
        trial.report(value, step)
        return not isinstance(self.optuna.pruner, optuna.pruners.NopPruner) and (value != value or trial.should_prune())

    @guarded
    def finish(self, number: int, result: dict[str, Any]) -> bool:
        """Record how a trial ended; False when it was taken for dead meanwhile, and has been put into the queue again."""
        trial = self.optuna.trials[number]
        if trial.state.is_finished():
            return False
        for key in ("error", "seconds", "validations", "best"):
            if result.get(key) is not None:
                # The trial's own object may be another worker's, so by its identity.
                self.optuna._storage.set_trial_user_attr(trial._trial_id, key, result[key])
        state = TrialState[result["state"].upper()]
        value = result["best"] if state is TrialState.COMPLETE else None
        return self._tell(number, state, value)

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> bool:
        """Only one of several processes that end the same trial succeeds."""
        try:
            self.optuna.tell(number, value, state)
        except (ValueError, RuntimeError):  # the second is Optuna's UpdateFinishedTrialError of old
            if self.optuna.trials[number].state.is_finished():
                return False
            raise
        return True

    @guarded
    def drop(self, number: int) -> None:
        """Take a trial out of the sum for good."""
        self._tell(number, TrialState.FAIL)

    @guarded
    def interrupt(self, number: int) -> None:
        """Take a trial out of the sum and put its values into the queue."""
        if self._tell(number, TrialState.FAIL):
            self._again(self.optuna.trials[number])

    def _again(self, trial: FrozenTrial, attempt: int = 0) -> None:
        if trial.params:
            self.optuna.enqueue_trial(trial.params, {"redo_of": trial.number, "attempt": attempt})

    @guarded
    def beat(self, trials: list[optuna.Trial]) -> None:
        """A sign of life for each running trial of ours, when it is time."""
        if time.monotonic() - self._beaten >= self.heartbeat:
            self._beaten = time.monotonic()
            for trial in trials:
                with suppress(ValueError, RuntimeError):  # it was taken for dead: `finish` will say so
                    trial.set_user_attr("beat", int(time.time()))

    @guarded
    def sweep(self, own: set[int]) -> tuple[int, list[str]]:
        """Look after the trials of other workers: those of dead ones are put into the queue again.

        Dead is a process of this machine that is gone, or one whose sign of life has not changed for three beats by our own clock:
        the clocks of two machines need not agree.

        Returns:
            How many are still running elsewhere, and a line for each that was lost.
        """
        lines, running = [], 0
        for trial in self.trials():
            if trial.state is not TrialState.RUNNING or trial.number in own:
                continue
            sign, now = (trial.user_attrs.get("worker"), trial.user_attrs.get("beat")), time.monotonic()
            if self._seen.get(trial.number, (None,))[0] != sign:
                self._seen[trial.number] = (sign, now)
            silent = now - self._seen[trial.number][1]
            if not gone(sign[0]) and silent < SILENT * self.heartbeat:
                running += 1
            elif line := self._lose(trial):
                lines.append(line)
        return running, lines

    def _lose(self, trial: FrozenTrial) -> str | None:
        folder = trial.user_attrs.get("folder")
        result = read_json(Path(folder) / RESULT) if folder else {}
        if result:  # its worker had written down how it ended, and died before it could tell
            return (
                f"trial {trial.number}  taken over from a worker that died"
                if self.finish(trial.number, result)
                else None
            )
        if not self._tell(trial.number, TrialState.FAIL):
            return None  # another worker was faster
        attempt = trial.user_attrs.get("attempt", 0) + 1
        if attempt > RETRIES:
            return f"trial {trial.number}  lost: its worker died {attempt} times over; new values take its place"
        self._again(trial, attempt)
        return f"trial {trial.number}  lost: its worker died; it is begun again"


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is part of the budget."""
    if trial.state is TrialState.FAIL:
        return "error" in trial.user_attrs
    return trial.state is not TrialState.WAITING


def differences(then: Any, now: Any, key: str = "") -> list[str]:
    """`model.lr is [0.01, 1.0], and was [0.001, 1.0]` for all that differs."""
    if isinstance(then, dict) and isinstance(now, dict) and (not key or key in ("space", "fit")):
        names = dict.fromkeys([*now, *then])
        return [
            line
            for name in names
            for line in differences(then.get(name), now.get(name), name if not key else f"{key}: {name}")
        ]
    return [] if then == now else [f"{key} is {_brief(now)}, and was {_brief(then)}"]


def _brief(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 120 else text[:117] + "..."
