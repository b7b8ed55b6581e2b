"""Where a study is kept: a database, or a journal file on a shared disk; and its errors in one line."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from project.errors import UserError
from project.files import expand


def open_storage(address: str) -> JournalStorage | RDBStorage:
    """The storage at journal:PATH, or at the URL of a database as SQLAlchemy takes it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    if address.startswith("journal:"):
        return JournalStorage(JournalFileBackend(os.path.abspath(expand("path", address.removeprefix("journal:")))))
    return RDBStorage(address, engine_kwargs={"pool_pre_ping": True})  # a server may have dropped the connection


@contextmanager
def storage_errors() -> Iterator[None]:
    """Errors of the storage as one line.

    Raises:
        UserError: for a storage that cannot be opened, or that has failed.
    """
    try:
        yield
    except (SQLAlchemyError, OptunaError, ImportError, OSError, json.JSONDecodeError) as error:
        words = " ".join(str(getattr(error.__cause__ or error, "orig", error)).split())  # without address and password
        raise UserError(f"storage: {words[:300]}") from error
