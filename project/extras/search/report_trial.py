"""A trial of a search tells its score after every validation, and hears whether to go on (advice A1)."""

import json
import os
import socket
from dataclasses import dataclass
from typing import Any, TextIO

import lightning as L

from project.errors import UserError

TRIAL = "PROJECT_TRIAL"  # environment variable of a trial: the metric, the number of the socket to the search, what is tried


@dataclass(frozen=True)
class Trial:
    """What a search has told this process: the metric it wants to hear, over which socket, and the values that are tried."""

    metric: str
    socket: int
    values: dict[str, Any]


def this_trial() -> Trial | None:
    """None when no search has begun this process."""
    told = os.environ.get(TRIAL)
    return Trial(**json.loads(told)) if told else None


class ReportTrial(L.Callback):
    """Stops the training in good order when the search prunes it, or has died."""

    def __init__(self, trial: Trial) -> None:
        """
        Args:
            trial: What the search has told.
        """
        self.metric, self._number, self._count = trial.metric, trial.socket, 0
        self._told: TextIO | None = None  # two streams: writing to one of both ways forgets what it has read ahead
        self._heard: TextIO | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:  # other processes have no such socket
            with socket.socket(fileno=os.dup(self._number)) as end:
                self._told, self._heard = end.makefile("w"), end.makefile("r")
        try:
            pl_module.check_metric("metric", self.metric)
        except UserError as error:
            self._send({"refused": str(error)})  # no trial can go any better
            raise

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._count += 1
        answer = self._send({"step": self._count, "value": float(trainer.callback_metrics[self.metric])})
        if trainer.strategy.broadcast(answer) != "go":
            trainer.should_stop = True

    def _send(self, message: dict[str, Any]) -> str:
        if self._told is None or self._heard is None:
            return ""
        try:
            self._told.write(json.dumps(message) + "\n")
            self._told.flush()
            return self._heard.readline().strip()
        except OSError:
            return ""  # the search has died: nobody waits for this trial
