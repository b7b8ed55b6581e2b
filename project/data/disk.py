"""Decoded images on the disk, in the user's cache folder, mapped into memory and shared by processes and runs.

A folder holds the images of one data folder in one format, in parts: files that are written whole and never changed.
A part is a line of JSON, a table of [path, state, offset, shape], and the pixels of its images, back to back. Whoever
dies while writing leaves a draft that nobody reads; a full disk leaves the earlier parts.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout  # torch depends on it
from torch import Tensor

from project.errors import UserError
from project.files import written_whole
from project.messages import say

PART = 2**26  # bytes of pixels: what waits in memory to be written, and what a kill loses
SPARE = 2**31  # bytes of the disk that are left free, for the checkpoints of the run
PARTS = "[!.]*.pixels"
Key = tuple[str, str]  # path, state
Place = Callable[[], np.ndarray]  # maps an image, uint8 (H, W, C): of the memory it takes what can be taken back


def has_room(folder: Path, size: int) -> bool:
    """Whether that many bytes take at most half of what is free on the disk, or a cache has been begun there."""
    with suppress(OSError):
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        free = shutil.disk_usage(there).free if there.is_dir() and os.access(there, os.W_OK) else 0
        return any(folder.glob(PARTS)) or size <= (free - SPARE) / 2
    return False


class Disk:
    """Images by path and state; whoever enters may add some, uint8 (C, H, W). Of two that build the same one waits."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.fault = folder, ""  # why no more images can be kept
        self.places: dict[Key, Place] = {}
        self._waiting: dict[Key, np.ndarray] = {}
        self._threads, self._runs = Lock(), FileLock(folder / "lock")

    def __enter__(self) -> "Disk":
        # Where the folder is read-only or the disk has no locks, some are kept twice at worst.
        with suppress(OSError, NotImplementedError):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._runs.acquire(timeout=0)
            except Timeout:
                say(f"waiting    for another run that keeps its images in {self.folder}")
                self._runs.acquire()
            for draft in self.folder.glob(".*.pixels"):  # of a run that was killed
                draft.unlink()
        for file in self.folder.glob(PARTS):
            with suppress(Exception):  # no file of ours
                table = read_table(file)
                if any(state_of(path) == state for path, state in table):
                    self.places |= table
                else:  # all of its images have changed since
                    file.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        if self._waiting:
            self._write()
        self._runs.release()

    def __setitem__(self, key: Key, image: Tensor) -> None:
        with self._threads:
            if not self.fault:
                self._waiting[key] = np.ascontiguousarray(image.permute(1, 2, 0))
                if len(self._waiting) * image.nbytes >= PART:
                    self._write()

    def _write(self) -> None:
        """Write what waits as a part."""
        rows, size, file = [], 0, self.folder / f"{uuid4()}.pixels"
        for key, image in self._waiting.items():
            rows.append([*key, size, image.shape])
            size += image.nbytes
        try:
            if shutil.disk_usage(self.folder).free < size + SPARE:
                raise UserError(f"less than {SPARE / 1e9:.0f} GB would be left free")
            with written_whole(file) as draft, draft.open("wb") as stream:
                stream.writelines([f"{json.dumps(rows)}\n".encode(), *self._waiting.values()])
            self.places |= read_table(file)
        except (OSError, UserError) as error:
            self.fault = str(error)
        self._waiting = {}


def read_table(file: Path) -> dict[Key, Place]:
    """The images in a part; an exception when it is none."""
    with file.open("rb") as stream:
        rows, start = json.loads(stream.readline()), stream.tell()
    mapped = partial(np.memmap, file, np.uint8, "c")
    return {(path, state): partial(mapped, start + offset, tuple(shape)) for path, state, offset, shape in rows}


def state_of(path: str) -> str:
    """Size and time of the last change of a file; empty when there is none."""
    with suppress(OSError):
        status = os.stat(path)
        return f"{status.st_size} {status.st_mtime_ns}"
    return ""
