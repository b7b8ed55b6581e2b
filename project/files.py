"""Files that are written whole or not at all."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from project.errors import UserError

PATH = re.compile(r"(root|dir|path|file|folder|weights|out|space|run|storage|config|data|model|trainer)\+?$")


def expand(key: str, value: str) -> str:
    """A value, where its key means a path: ~ and $VAR stand for what they name, unless it exists as it is written."""
    if not PATH.search(key):
        return value
    path = os.path.expanduser(value)
    return path if os.path.exists(path) else os.path.expandvars(path)


def output_path(name: str, example: str) -> Path:
    """Where a file is to be written, with links followed.

    Args:
        name: As the user gave it, with --out.
        example: A good name, for the message.

    Raises:
        UserError: when no file can be written there.
    """
    path = Path(name).expanduser()
    try:
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "not an ordinary file"
            raise UserError(f"out: {path} is {what}; give a file, for example --out {example}")
        path = path.resolve()  # a link is to be followed, not replaced
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise UserError(f"out: {path} cannot be written ({error})") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"out: there is no folder {path.parent} that can be written to; make it first")
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a draft to write; it takes the file's place when the block ends well, else the file stays as it was.

    Raises:
        UserError: when the disk is full or the like.
    """
    # With its suffix, by which libraries know the format; of a long name only the beginning, since names have a limit.
    draft = path.with_name(f".{path.stem[:40]}.{os.getpid()}.part{path.suffix}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        draft.unlink(missing_ok=True)
