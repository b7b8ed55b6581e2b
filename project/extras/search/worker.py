"""Which process a trial belongs to, and whether it is gone."""

import os
import socket
import uuid
from pathlib import Path


def whoami() -> str:
    """Machine, process and the moment it began, since numbers of processes are used again."""
    return f"{socket.gethostname()}/{_boot()} {os.getpid()} {_started(os.getpid())}"


def gone(worker: str | None) -> bool:
    """Whether a worker is a process of this machine that has ended; False for one of another machine."""
    place, pid, started = worker.rsplit(" ", 2) if worker else ("", "0", "")
    return place == f"{socket.gethostname()}/{_boot()}" and _started(int(pid)) != started


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # two containers count their processes apart
    except OSError:
        return f"{uuid.getnode():x}"


def _started(pid: int) -> str:
    """Clock ticks from the machine's start to the process's; where there is no /proc, whether it runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "-" if fields[0] == "Z" else fields[19]  # a zombie has ended
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "-"
    except OSError:
        pass
    return "-" if Path("/proc/self").exists() else "runs"
