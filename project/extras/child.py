"""Ctrl-C and SIGTERM while child processes run, which shall end in good order."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


@contextmanager
def signals(words: str) -> Iterator[list[int]]:
    """Yields a list that takes the first signal's number; prints the words. A second one raises KeyboardInterrupt."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        print(f"\n{words}", flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_to_the_end(command: Sequence[str], **popen: Any) -> tuple[int, int]:
    """Run a command, which is stopped with us; its exit code, and the signal that stopped it or 0."""
    with signals("Stopping; a second Ctrl-C does not wait.") as asked:
        process = subprocess.Popen(command, start_new_session=True, **popen)  # a signal reaches it once, from us
        try:
            while process.poll() is None and not asked:
                time.sleep(0.1)
            if asked:
                process.terminate()
            process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, asked[0] if asked else 0
