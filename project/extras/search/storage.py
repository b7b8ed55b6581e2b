"""Where a study is kept: a database, or a journal file on a shared disk; and what goes wrong there, in one line."""

import functools
import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import SQLAlchemyError

from project.errors import UserError

LOCKED = 20  # seconds to wait for another process's write to SQLite
DRIVERS = {  # SQLAlchemy's default, which has changed with its version, need not be the one that is installed
    "postgresql": {"pg8000": "pg8000", "psycopg": "psycopg", "psycopg2": "psycopg2"},
    "mysql": {"mysqldb": "MySQLdb", "pymysql": "pymysql"},
}
Result = TypeVar("Result")


def guarded(method: Callable[..., Result]) -> Callable[..., Result]:
    """Errors of the storage in one line; nothing is lost by them, since what is recorded stays."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **named: Any) -> Result:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return method(self, *arguments, **named)
        except UserError:
            raise
        except (SQLAlchemyError, OptunaError, OSError, ImportError, ValueError, RuntimeError) as error:
            raise UserError(f"storage: {self.where}: {_reason(error)}") from error

    return call


def already_there(error: BaseException) -> bool:
    """Whether something could not be made because another process has just made it."""
    words = str(error).lower() + str(error.__cause__).lower()
    return any(word in words for word in ("already exists", "another study", "unique", "duplicate"))


def _reason(error: BaseException) -> str:
    """The driver's own words, not the statement around them."""
    cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
    driver = getattr(cause, "orig", None) or cause
    said: Any = driver
    if driver.args and isinstance(driver.args[0], dict):
        said = driver.args[0].get("M", driver)  # pg8000 gives a table
    elif len(driver.args) == 2 and isinstance(driver.args[0], int):
        said = driver.args[1]  # a number and its words
    words = " ".join(str(said).split())[:200].rstrip(".")
    if isinstance(error, ImportError):
        return f"its driver is not installed ({words}): pip install pg8000 for PostgreSQL, pymysql for MySQL"
    hints = {
        "create a connection": "is the server up, and can this machine reach it?",
        "connect to": "is the server up, and can this machine reach it?",
        "locked": "another program holds it; close that, then go on with --resume",
        "full": "make room, then go on with --resume",
        "No space": "make room, then go on with --resume",
        "not a database": "this is no SQLite file; give another --storage or --name",
    }
    return words + next((f": {hint}" for word, hint in hints.items() if word in words), "")


class Journal(JournalFileBackend):
    """A journal that a full disk does not spoil: half a line is taken away again."""

    def __init__(self, path: Path) -> None:
        # Exclusive creation is safe on NFS from version 3 on, and unlike the symbolic link shows when a dead process has left it.
        self._path, self._own_lock = path, JournalFileOpenLock(str(path))
        super().__init__(str(path), lock_obj=self._own_lock)
        self._mend()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError:
            self._mend()
            raise

    def _mend(self) -> None:
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._own_lock.acquire()
            try:
                content = self._path.read_bytes()
                os.truncate(self._path, content.rfind(b"\n") + 1)
            finally:
                self._own_lock.release()


def open_storage(url: str) -> RDBStorage | JournalStorage:
    """A database by its URL, or a journal file by journal:PATH."""
    if url.startswith("journal:"):
        path = Path(url.removeprefix("journal:").removeprefix("//")).expanduser().absolute()
        if not path.parent.is_dir():
            raise UserError(f"storage: there is no folder {path.parent}; make it first")
        if path.is_dir():
            raise UserError(f"storage: {path} is a folder; give a file in it, such as journal:{path / 'search.log'}")
        try:
            return JournalStorage(Journal(path))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"storage: {path} is no journal of Optuna, or a damaged one") from error
    if "://" not in url:
        raise UserError(
            f"storage: {url} is no address; write journal:PATH, sqlite:///PATH, postgresql://USER@HOST/DATABASE or mysql://..."
        )
    kind, _, rest = url.partition("://")
    if rest.partition("/")[0].count("@") > 1:
        raise UserError(f"storage: {shown(url)}: write an @ in a password as %40")
    installed = [driver for driver, module in DRIVERS.get(kind, {}).items() if find_spec(module) is not None]
    url = f"{kind}+{installed[0]}://{rest}" if installed else url
    lite = url.startswith("sqlite")
    engine = (
        {"connect_args": {"timeout": LOCKED}} if lite else {"pool_pre_ping": True}
    )  # a server may have dropped the connection
    return RDBStorage(url, engine_kwargs=engine)


def shown(url: str) -> str:
    """An address without its password."""
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://{tail}" if at else url
