"""The loop of a search: begin trials, listen to them, record how they end (advice A1)."""

import json
import os
import selectors
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml

from project.errors import UserError
from project.extras.search.space import Space, Values
from project.extras.search.study import Study
from project.extras.search.trial import RESULT, Child
from project.files import written_whole
from project.run.child import signals

SAME = 3  # trials in a row that fail with one and the same error: the settings are at fault, not the values
PARAMS = "params.yaml"
TICK = 0.5  # seconds
PATIENCE = 20.0  # seconds for all trials to stop in good order; SLURM itself gives 30


@dataclass
class Running:
    """A trial of ours that is under way."""

    trial: optuna.Trial
    values: Values
    child: Child
    slot: int


@dataclass
class Search:
    """One process's part in a search.

    Attributes:
        study: Where the budget and the results are.
        space: What is searched.
        folder: runs/search/NAME.
        command: Folder of a trial, with its params.yaml -> what to run.
        metric: What a trial reports.
        extra: Settings for every trial besides the searched ones.
        slots: One for each trial at a time: what its environment has besides ours.
        timeout: Seconds after which no trial begins any more; None for no end.
    """

    study: Study
    space: Space
    folder: Path
    command: Callable[[Path], Sequence[str]]
    metric: str
    maximise: bool
    extra: dict[str, Any] = field(default_factory=dict)
    slots: list[dict[str, str]] = field(default_factory=lambda: [{}])
    timeout: float | None = None

    def run(self) -> int:
        """Spend the budget that is left. Returns the signal that stopped it, or 0.

        Raises:
            UserError: when no trial can succeed, or the storage fails; running trials are stopped first.
        """
        self._running: list[Running] = []
        self._errors: list[str] = []
        self._began, self._looked, self._waiting = time.monotonic(), 0.0, False
        with signals("Stopping the running trials; a second Ctrl-C does not wait for them.") as asked:
            try:
                while not asked and self._go_on():
                    self._listen()
                    self._reap()
                    self.study.beat([running.trial for running in self._running])
                self._stop()
            except UserError:
                with suppress(UserError):  # the first says what is wrong
                    self._stop()
                raise
            finally:
                for running in self._running:
                    running.child.kill()
                    running.child.close()
        return asked[0] if asked else 0

    def _go_on(self) -> bool:
        """Fill the free places; False when all is done, here and elsewhere."""
        elsewhere = 0
        if len(self._running) < len(self.slots) or time.monotonic() - self._looked > self.study.heartbeat:
            self._looked = time.monotonic()
            elsewhere, lines = self.study.sweep({running.trial.number for running in self._running})
            for line in lines:
                print(line, flush=True)
        late = self.timeout is not None and time.monotonic() - self._began > self.timeout
        while not late and len(self._running) < len(self.slots) and self._begin():
            pass
        if self._running or late:
            return bool(self._running)
        if elsewhere and not self._waiting:
            self._waiting = True
            print(f"waiting for {elsewhere} trials of other workers; Ctrl-C leaves them to those", flush=True)
        if elsewhere:
            time.sleep(min(2.0, self.study.heartbeat))
        return elsewhere > 0 or self.study.left() > 0

    def _begin(self) -> bool:
        reserved = self.study.reserve(self.space, self.folder)
        if reserved is None:
            return False
        trial, values = reserved
        folder = Path(trial.user_attrs["folder"])
        try:
            folder.mkdir(parents=True)  # a new one: what an earlier trial left there would be taken for this one's
            settings = {**self.space.settings(values), **self.extra}
            (folder / PARAMS).write_text(yaml.safe_dump(settings, sort_keys=False))
            slot = min(set(range(len(self.slots))) - {running.slot for running in self._running})
            child = Child(self.command(folder), folder, self.metric, values, self.slots[slot])
        except OSError as error:
            self.study.interrupt(trial.number)
            raise UserError(
                f"{folder} cannot be written or its trial not be started ({error.strerror or error})"
            ) from error
        self._running.append(Running(trial, values, child, slot))
        return True

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for running in self._running:
                if not running.child.silent:
                    selector.register(running.child.socket, selectors.EVENT_READ, running)
            ending = any(running.child.silent for running in self._running)
            ready = [key.data for key, _ in selector.select(TICK / 10 if ending else TICK)] if self._running else []
        for running in ready:
            self._hear(running)

    def _hear(self, running: Running) -> None:
        for step, value in running.child.read():
            if self.study.report(running.trial, step, value):
                running.child.pruned = True
            running.child.answer("stop" if running.child.pruned else "go")

    def _reap(self) -> None:
        for running in [running for running in self._running if running.child.ended]:
            self._hear(running)
            self._record(running)
            running.child.close()
            self._running.remove(running)
            if running.child.refused:
                raise UserError(running.child.refused)
            if len(self._errors) >= SAME and len(set(self._errors[-SAME:])) == 1:
                raise UserError(
                    f"{SAME} trials in a row failed alike: {self._errors[-1]} (their log: {running.child.folder})"
                )

    def _record(self, running: Running) -> None:
        child, number = running.child, running.trial.number
        if child.refused:
            self.study.drop(number)
            return
        scores, error = child.scores(), child.error()
        best = (max(scores) if self.maximise else min(scores)) if scores else None
        if error is None and best is None and not child.pruned:
            error = f"{self.metric} was never a number"
        result = {
            "state": "fail" if error else "pruned" if child.pruned else "complete",
            "best": best,
            "error": error,
            "seconds": round(time.monotonic() - child.began, 1),
            "validations": len(child.values),
        }
        self._errors = [*self._errors, error] if error else []
        with suppress(UserError), written_whole(child.folder / RESULT) as draft:  # for the case that the storage fails
            draft.write_text(json.dumps(result) + "\n")
        if self.study.finish(number, result):
            print(line(number, result, self.metric, running.values), flush=True)
        else:
            print(f"trial {number}  was taken for dead, and is done by another worker", flush=True)

    def _stop(self) -> None:
        """After a signal: end what runs, so that --resume does it again."""
        for running in self._running:
            running.child.ask_to_stop()
        end = time.monotonic() + PATIENCE
        for running in self._running:
            running.child.wait(end - time.monotonic())
            self.study.interrupt(running.trial.number)
            print(f"trial {running.trial.number}  interrupted; --resume does it again", flush=True)


def line(number: int, result: dict[str, Any], metric: str, values: Values) -> str:
    """What is said of a trial that has ended."""
    words = {
        "complete": "",
        "pruned": f"pruned after {result['validations']}  ",
        "fail": f"failed: {result['error']}  ",
    }
    score = f"{metric} {result['best']:.4f}  " if result["best"] is not None else ""
    shown = "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )
    return f"trial {number}  {words[result['state']]}{score}{shown}  {result['seconds']:.0f} s"


def share_of_cores(workers: int) -> dict[str, str]:
    """Threads for each of several trials on one machine, which would otherwise each take all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {} if workers == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // workers))}
