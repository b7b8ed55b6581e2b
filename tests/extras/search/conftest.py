"""A worker whose trials do not train, and real database servers of the tests' own, on loopback."""

import itertools
import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import optuna
import pytest

from project.extras.search.budget import Budget
from project.extras.search.storage import open_storage
from project.extras.search.worker import Worker

NUMBER = itertools.count()
SCORES = {"good": [0.1, 0.3, 0.2], "nan": [math.nan]}


def budget_of(address: str, trials: int, heartbeat: float = 60.0) -> Budget:
    """A budget whose study is at that address; each call is another worker, as far as the study is concerned."""
    storage, sampler = open_storage(address), optuna.samplers.RandomSampler()
    study = optuna.create_study(
        storage=storage, study_name="fake", direction="maximize", sampler=sampler, load_if_exists=True
    )
    return Budget(study, trials, heartbeat)


def worker_of(budget: Budget, folder: Path, how: str = "good", command: str = "true", end: float = math.inf) -> Worker:
    """A worker whose trials report at once what a training would in its course, and whose process is a shell."""

    def start(trial: optuna.Trial) -> tuple[Path, list[str]]:
        trial.suggest_float("lr", 0.0, 1.0)
        for step, score in enumerate(SCORES.get(how, SCORES["good"]), start=1):
            trial.report(score, step)
        if how == "pruned":
            trial.set_user_attr("pruned", True)
        place = folder / f"trial_{trial.number:04d}"
        place.mkdir(parents=True)
        return place, ["sh", "-c", f"echo $$ > {place}/began; {command}"]

    return Worker(budget, start, "val/acc", "max", end)


def without(what: str) -> NoReturn:
    """Skip, but fail in CI, which is to leave nothing out."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def place_for(user: str) -> tuple[Path, str | None]:
    """A folder for a server, and the user to run it as, since none of them runs as root; None is ourselves."""
    folder = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    if os.getuid():
        return folder, None
    if subprocess.run(["id", user], capture_output=True, check=False).returncode:
        without(f"there is no user {user} to run the server as")
    shutil.chown(folder, user)
    return folder, user


@pytest.fixture
def postgresql(postgresql_port: int) -> str:
    """The address of a new database in a PostgreSQL server."""
    import pg8000.dbapi

    name = f"study_{next(NUMBER)}"
    connection = pg8000.dbapi.connect("postgres", host="127.0.0.1", port=postgresql_port)
    connection.autocommit = True
    connection.cursor().execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"postgresql+pg8000://postgres@127.0.0.1:{postgresql_port}/{name}"


@pytest.fixture
def mysql(mysql_port: int) -> str:
    """The address of a new database in a MariaDB server, which speaks as MySQL does."""
    import pymysql

    name = f"study_{next(NUMBER)}"
    with pymysql.connect(host="127.0.0.1", port=mysql_port, user="root") as connection:
        connection.cursor().execute(f"CREATE DATABASE {name}")
    return f"mysql+pymysql://root@127.0.0.1:{mysql_port}/{name}"


@pytest.fixture(scope="session")
def postgresql_port() -> Iterator[int]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "/none")]
    if not found[-1].is_file() or find_spec("pg8000") is None:
        without("PostgreSQL or its driver pg8000 is not installed")
    tools, port = found[-1].parent, free_port()
    folder, user = place_for("postgres")

    def run(tool: str, *arguments: str) -> None:
        command = [str(tools / tool), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, user=user)

    run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-o", options, "-l", str(folder / "log"), "-w", "start")
    yield port
    run("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mysql_port() -> Iterator[int]:
    make, serve = shutil.which("mariadb-install-db"), shutil.which("mariadbd", path=f"{os.environ['PATH']}:/usr/sbin")
    if not make or not serve or find_spec("pymysql") is None:
        without("MariaDB or its driver pymysql is not installed")
    import pymysql

    port = free_port()
    folder, user = place_for("mysql")
    prepare = [
        make,
        "--no-defaults",
        f"--datadir={folder}/data",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    ]
    subprocess.run(prepare, check=True, capture_output=True, cwd=folder, user=user)
    where = [f"--datadir={folder}/data", f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/socket"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([serve, "--no-defaults", *where], stdout=log, stderr=log, cwd=folder, user=user)
    for _ in range(120):
        try:
            pymysql.connect(host="127.0.0.1", port=port, user="root").close()
            break
        except pymysql.err.OperationalError:  # it is still starting
            time.sleep(0.5)
    yield port
    server.kill()
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)
