"""Whether other processes want the processor that we would compute on."""

import os
import time
from pathlib import Path


def crowded() -> bool:
    """Whether there are more threads that want to compute than cores, if this process takes its own; takes 20 ms.

    False where it cannot be known: Linux alone tells.
    """
    try:
        ours, running = len(os.sched_getaffinity(0)), []
        for _ in range(5):  # the fewest count: many a thread runs for a moment only
            every = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
            states = [each.read_text().rpartition(")")[2].split()[0] for each in Path("/proc/self/task").glob("*/stat")]
            running.append(every - states.count("R"))
            time.sleep(0.004)
    except (AttributeError, OSError, LookupError, ValueError):
        return False
    return min(running) + ours > (os.cpu_count() or 1)
