"""The worker, with trials that do not train: every way to end is recorded, and nothing that runs is left behind."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from optuna.trial import TrialState

from project.errors import UserError

from .conftest import budget_of, worker_of

WORKER = """
import sys
from pathlib import Path
from conftest import budget_of, worker_of
address, folder, trials, command = sys.argv[1:]
sys.exit(worker_of(budget_of(address, int(trials), 0.3), Path(folder), command=command).run([{}]))
"""


@pytest.fixture
def address(tmp_path) -> str:
    return f"journal:{tmp_path}/log"


@pytest.mark.parametrize(
    ("how", "command", "state", "error"),
    [
        ("good", "true", "COMPLETE", None),
        ("pruned", "true", "PRUNED", None),
        ("nan", "true", "FAIL", "val/acc was never a number"),
        ("good", "echo Traceback; echo RuntimeError: boom; exit 1", "FAIL", "RuntimeError: boom"),
        ("good", "exit 3", "FAIL", "exit code 3"),
        ("good", "kill -9 $$", "FAIL", "killed by signal 9"),
    ],
)
def test_every_way_to_end_is_recorded_and_counts(how, command, state, error, address, tmp_path) -> None:
    budget = budget_of(address, 1)
    assert worker_of(budget, tmp_path, how, command).run([{}]) == 0
    (trial,) = budget.study.trials
    assert trial.state.name == state and trial.user_attrs.get("error") == error
    assert trial.user_attrs["score"] == (0.3 if how in ("good", "pruned") else None)  # of the best epoch
    assert state != "COMPLETE" or trial.value == 0.3


def test_the_same_error_three_times_in_a_row_ends_the_search(address, tmp_path) -> None:
    budget = budget_of(address, 9)
    with pytest.raises(UserError, match="3 trials in a row failed alike: no memory"):
        worker_of(budget, tmp_path, command="echo no memory; exit 1").run([{}])
    assert len(budget.study.trials) == 3


def test_each_slot_has_its_environment(address, tmp_path) -> None:
    budget = budget_of(address, 2)
    command = f"cd {tmp_path}; touch $GPU; while [ ! -e 0 ] || [ ! -e 1 ]; do sleep 0.05; done"  # both, or for ever
    assert worker_of(budget, tmp_path, command=command).run([{"GPU": "0"}, {"GPU": "1"}]) == 0
    assert [trial.state for trial in budget.study.trials] == [TrialState.COMPLETE] * 2


def test_after_the_timeout_no_trial_starts(address, tmp_path) -> None:
    budget = budget_of(address, 9)
    assert worker_of(budget, tmp_path, end=time.monotonic()).run([{}]) == 0
    assert budget.left() == 9


def start(address: str, folder: Path, trials: int, command: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    arguments = [sys.executable, "-c", WORKER, address, str(folder), str(trials), command]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(folder: Path, count: int) -> int:
    """Until that many trials have begun; the process of the last."""
    end = time.monotonic() + 60
    while not (path := folder / f"trial_{count - 1:04d}" / "began").is_file() or not path.read_text():
        assert time.monotonic() < end, "no trial has begun"
        time.sleep(0.05)
    return int(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 2), (signal.SIGTERM, 15)])
def test_a_signal_stops_the_trial_and_keeps_its_values(number, code, address, tmp_path) -> None:
    first = start(address, tmp_path, 2, "[ -e go ] || exec sleep 100")
    child = wait_for(tmp_path, 1)
    first.send_signal(number)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == code and "trial 0  interrupted" in out
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    budget = budget_of(address, 2)
    assert worker_of(budget, tmp_path).run([{}]) == 0
    trials = budget.study.trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[0].params == trials[1].params


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql", "mysql"])
def test_another_worker_takes_over_from_one_that_is_killed(kind, tmp_path, request) -> None:
    places = {"sqlite": f"sqlite:///{tmp_path}/study.db?timeout=20", "journal": f"journal:{tmp_path}/log"}
    address = places.get(kind) or request.getfixturevalue(kind)
    first = start(address, tmp_path / "a", 3, "exec sleep 100")
    child = wait_for(tmp_path / "a", 1)
    first.kill()
    first.communicate()
    os.kill(child, signal.SIGKILL)
    budget = budget_of(address, 3, 0.3)
    assert worker_of(budget, tmp_path / "b").run([{}]) == 0
    trials = budget.study.trials
    assert sorted(trial.state.name for trial in trials) == ["COMPLETE"] * 3 + ["FAIL"]
    assert trials[0].params in [trial.params for trial in trials[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql", "mysql"])
def test_processes_that_begin_at_once_share_one_budget(kind, tmp_path, request) -> None:
    places = {"sqlite": f"sqlite:///{tmp_path}/study.db?timeout=20", "journal": f"journal:{tmp_path}/log"}
    address = places.get(kind) or request.getfixturevalue(kind)
    if kind != "journal":
        budget_of(address, 7)  # makes the tables, which Optuna cannot do twice at once
    workers = [start(address, tmp_path / "a", 7, "sleep 0.1") for _ in range(3)]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 3, outputs
    trials = [trial for trial in budget_of(address, 7).study.trials if trial.state is TrialState.COMPLETE]
    assert len(trials) == len({trial.params["lr"] for trial in trials}) == 7
    assert math.isclose(max(trial.value for trial in trials), 0.3)
