"""One trial: a process of its own, heard over a socket, so that a crash of it is no crash of the search (advice A1)."""

import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRIAL = (
    "PROJECT_TRIAL"  # in the child's environment: metric, socket, values; read by project/extras/search/report_trial.py
)
LOG = "log.txt"
RESULT = "result.json"
LIMIT = 300  # characters of an error that are kept


class Child:
    """A running trial. Its scores come in through `read`; each is answered with `go` or `stop`."""

    def __init__(
        self, command: Sequence[str], folder: Path, metric: str, values: dict[str, Any], environment: dict[str, str]
    ) -> None:
        """
        Args:
            command: What to run.
            folder: Of the trial; takes log.txt, which is all that the process prints.
            metric: The name that the process is to report.
            values: What is tried, as TensorBoard is to show it.
            environment: Variables besides our own, such as CUDA_VISIBLE_DEVICES.
        """
        self.folder = folder
        self.values: dict[int, float] = {}  # validation, from 1 -> score
        self.refused: str | None = None
        self.pruned = False
        self.silent = False  # it has closed its end
        self.began = time.monotonic()
        self._buffer = b""
        self.socket, theirs = socket.socketpair()
        told = {TRIAL: json.dumps({"metric": metric, "socket": theirs.fileno(), "values": values})}
        with theirs, (folder / LOG).open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment, **told},
                start_new_session=True,  # Ctrl-C is for the search, which then stops its trials one by one
            )

    def read(self) -> list[tuple[int, float]]:
        """The scores that have come in: (validation, score). Call it when the socket is readable."""
        try:
            received = self.socket.recv(65536, socket.MSG_DONTWAIT)
        except OSError:
            return []
        self.silent = not received
        self._buffer += received
        *lines, self._buffer = self._buffer.split(b"\n")
        found = []
        for message in map(json.loads, lines):
            if "refused" in message:
                self.refused = message["refused"]
                self.answer("stop")
            else:
                self.values[message["step"]] = message["value"]
                found.append((message["step"], message["value"]))
        return found

    def answer(self, word: str) -> None:
        try:
            self.socket.sendall(f"{word}\n".encode())
        except OSError:
            pass  # it has just ended

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def ask_to_stop(self) -> None:
        """SIGTERM, on which a training keeps its checkpoint."""
        self._signal(signal.SIGTERM)
        self.answer("stop")

    def wait(self, seconds: float) -> None:
        """SIGKILL when it takes longer."""
        try:
            self.process.wait(max(0, seconds))
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self._signal(signal.SIGKILL)  # what it may have left: the other processes of several, workers that read images
        self.socket.close()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def error(self) -> str | None:
        """Why it ended badly, in one line; None when it did not."""
        code = self.process.returncode
        if code == 0:
            return None if self.values else "it ended without a score: no validation was reached"
        last = last_line(self.folder / LOG)
        if code < 0:
            name = signal.Signals(-code).name
            why = ", which is how Linux ends a process when memory runs out" if -code == signal.SIGKILL else ""
            return f"killed by {name}{why}"
        return last.removeprefix("error: ") or f"exit code {code}"

    def scores(self) -> list[float]:
        return [value for value in self.values.values() if math.isfinite(value)]


def last_line(path: Path) -> str:
    """The last line that is not empty: of a traceback, the error."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:  # somebody has removed it
        return ""
    return next((line.strip()[:LIMIT] for line in reversed(lines) if line.strip()), "")


def read_json(path: Path) -> dict[str, Any]:
    """{} when there is none, or a damaged one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
