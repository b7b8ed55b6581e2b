"""The part that one process has in a search: start trials, wait for them, record how they end (advice A1)."""

import math
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from project.errors import UserError
from project.extras.child import signals
from project.extras.search.budget import Budget

SAME = 3  # trials in a row that fail with one and the same error: the settings are at fault, not the values
PATIENCE = 20.0  # seconds for a trial to stop in good order; SLURM itself gives 30


@dataclass(frozen=True)
class Worker:
    """
    Attributes:
        budget: What is left to do.
        start: Chooses the values of a trial; returns its folder and its command.
        metric: Name of the score.
        mode: max where more of it is better, else min.
        end: Moment (time.monotonic) after which no further trial starts.
    """

    budget: Budget
    start: Callable[[optuna.Trial], tuple[Path, list[str]]]
    metric: str
    mode: str
    end: float
    _errors: deque[str] = field(default_factory=lambda: deque(maxlen=SAME))  # of the last trials; "" for none

    def run(self, slots: list[dict[str, str]]) -> int:
        """Spend the budget that is left, in so many slots at a time.

        Args:
            slots: For each, what the environment of its trials has besides ours.

        Returns:
            The signal that stopped it, or 0.

        Raises:
            UserError: when trials keep failing alike.
        """
        words = f"Stopping the running trials; this takes up to {PATIENCE:.0f} seconds."
        with signals(words) as asked, ThreadPoolExecutor(len(slots)) as pool:
            for part in [pool.submit(self._work, slot, asked) for slot in slots]:
                part.result()
        return asked[0] if asked else 0

    def _work(self, environment: dict[str, str], asked: list[int]) -> None:
        """Run one trial after another, until nothing is left to do for anybody."""
        while not asked and time.monotonic() < self.end:
            trial = self.budget.claim()
            if trial is not None:
                self._trial(trial, environment, asked)
            elif self.budget.running():  # elsewhere, perhaps: should that worker die, its trial is ours
                time.sleep(min(1.0, self.budget.heartbeat))
            else:
                return

    def _trial(self, trial: optuna.Trial, own: dict[str, str], asked: list[int]) -> None:
        folder, command = self.start(trial)
        with (folder / "log.txt").open("w") as log:
            # A session of its own: Ctrl-C is for the search, which then stops its trials one by one.
            process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True)
        beaten = time.monotonic()
        try:
            while process.poll() is None and not asked:
                time.sleep(0.1)
                if time.monotonic() > beaten + self.budget.heartbeat:
                    beaten = time.monotonic()
                    self.budget.beat(trial)
            if process.returncode is not None:
                self._record(trial, process.returncode, folder / "log.txt")
            else:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                self.budget.requeue(self.budget.study.trials[trial.number])
        except RuntimeError:  # Optuna's for a trial that has been ended
            print(f"trial {trial.number}  was taken for dead, and is done by another worker", flush=True)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it may have left, such as workers that read images
            process.wait()

    def _record(self, trial: optuna.Trial, code: int, log: Path) -> None:
        known = self.budget.study.trials[trial.number]  # with what the child has reported
        scores = [value for value in known.intermediate_values.values() if math.isfinite(value)]
        score, error = (max if self.mode == "max" else min)(scores, default=None), ""
        state = TrialState.PRUNED if "pruned" in known.user_attrs else TrialState.COMPLETE
        if code:
            error = log.read_text(errors="replace").strip().rpartition("\n")[2]
            error = f"killed by signal {-code}" if code < 0 else error or f"exit code {code}"
        elif score is None:
            error = f"{self.metric} was never a number"
        if error:
            state = TrialState.FAIL
            trial.set_user_attr("error", error)
        trial.set_user_attr("score", score)
        self._errors.append(error)
        self.budget.study.tell(trial, score if state is TrialState.COMPLETE else None, state, skip_if_finished=True)
        print(line(self.budget.study.trials[trial.number], self.metric), flush=True)
        if error and self._errors.count(error) == SAME:
            raise UserError(f"{SAME} trials in a row failed alike: {error}")


def line(trial: FrozenTrial, metric: str) -> str:
    """What is printed of a trial that has ended."""
    values = {metric: trial.user_attrs["score"], **trial.params}
    parts = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()]
    how = trial.user_attrs.get("error") or f"{len(trial.intermediate_values)} validations"
    return "  ".join([f"trial {trial.number}", *parts, f"{trial.state.name.lower()}: {how}"])
