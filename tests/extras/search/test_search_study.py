"""The loop and the budget, with trials that do not train: nothing lost, nothing counted twice, whatever is killed."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from conftest import ROOT
from optuna.trial import TrialState

from project.errors import UserError
from project.extras.search.sampler import Seeded
from project.extras.search.search import Search
from project.extras.search.space import Parameter, Space
from project.extras.search.storage import _reason
from project.extras.search.study import Study, counts, differences
from project.extras.search.worker import gone, whoami

sys.path.insert(0, str(Path(__file__).parent))
from fake_worker import build

WORKER = [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def how(*kinds: str) -> Space:
    return Space(
        [Parameter("lr", "float", 0.0, 1.0), Parameter("how", "choice", choices={kind: kind for kind in kinds})]
    )


def states(search: Search) -> list[str]:
    return [trial.state.name for trial in search.study.trials() if counts(trial)]


def start(storage: str, folder: Path, trials: int, *host: str, seconds: float = 0.05) -> subprocess.Popen:
    environment = {**ENVIRONMENT, "FAKE_SECONDS": str(seconds)}
    arguments = [*WORKER, storage, str(folder), str(trials), *host]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(folder: Path, count: int, seconds: float = 30) -> None:
    """Until that many trials have begun."""
    end = time.monotonic() + seconds
    while len(list(folder.glob("trial_*/began"))) < count:
        assert time.monotonic() < end, "no trial has begun"
        time.sleep(0.02)


def once_each(storage: str, folder: Path, trials: int, lost: int) -> None:
    """The whole budget, no trial twice; those that were lost are followed by one with the same values."""
    study = build(storage, folder, trials).study
    every = study.trials()
    kept = [trial for trial in every if counts(trial)]
    assert [trial.state for trial in kept] == [TrialState.COMPLETE] * trials
    values = [trial.params["lr"] for trial in kept]
    assert len(set(values)) == trials  # the same values never count twice
    gone_ones = [trial for trial in every if not counts(trial) and trial.params]
    assert len(gone_ones) == lost
    assert {trial.params["lr"] for trial in gone_ones} <= set(values)  # and were done in the end


def url(kind: str, folder: Path, request: pytest.FixtureRequest) -> str:
    if kind in ("postgresql", "mysql"):
        return request.getfixturevalue(kind)
    return {"sqlite": f"sqlite:///{folder}/study.db", "journal": f"journal:{folder}/study.log"}[kind]


def test_every_way_to_end_is_recorded_and_the_search_goes_on(tmp_path) -> None:
    search = build(
        f"journal:{tmp_path}/study.log", tmp_path, 12, space=how("good", "raises", "killed", "silent", "nan")
    )
    assert search.run() == 0
    trials = search.study.trials()
    assert len(trials) == 12 and all(map(counts, trials))
    for trial in trials:
        error = trial.user_attrs.get("error")
        if trial.params["how"] == "good":
            assert trial.state is TrialState.COMPLETE and error is None
            assert trial.value == pytest.approx(
                0.3 - (trial.params["lr"] - 0.5) ** 2
            )  # the best epoch's, which is the last
        else:
            assert trial.state is TrialState.FAIL
            expected = {
                "raises": "RuntimeError: boom at",
                "killed": "memory",
                "silent": "without a score",
                "nan": "never a number",
            }
            assert expected[trial.params["how"]] in error and "\n" not in error
    assert {trial.params["how"] for trial in trials} >= {"good", "raises"}


def test_the_same_error_three_times_in_a_row_ends_the_search(tmp_path) -> None:
    search = build(
        f"journal:{tmp_path}/study.log",
        tmp_path,
        12,
        space=Space([Parameter("how", "choice", choices={"a": "raises", "b": "raises"})]),
    )
    with pytest.raises(UserError, match="3 trials in a row failed alike: RuntimeError: boom"):
        search.run()
    assert states(search) == ["FAIL"] * 3


def test_a_metric_that_is_never_logged_ends_the_search_at_once(tmp_path) -> None:
    search = build(f"journal:{tmp_path}/study.log", tmp_path, 12, space=how("refused", "refused too"))
    search.space = Space([Parameter("how", "choice", choices={"a": "refused", "b": "refused"})])
    with pytest.raises(UserError, match="no metric 'val/f1'"):
        search.run()
    assert len(list(tmp_path.glob("trial_*"))) == 1 and search.study.left() == 12
    search.study.begin({"space": "another"}, 3, join=False)  # nothing was begun, so it is no other search


def test_a_folder_that_is_there_is_not_taken_for_the_trials_own(tmp_path) -> None:
    search = build(f"journal:{tmp_path}/study.log", tmp_path, 2)
    (tmp_path / "trial_0000").mkdir()
    with pytest.raises(UserError, match=r"trial_0000 cannot be written.*File exists"):
        search.run()


def test_a_trial_whose_folder_is_removed_is_recorded_and_the_search_goes_on(tmp_path) -> None:
    worker = start(f"journal:{tmp_path}/study.log", tmp_path / "a", 2, seconds=0.3)
    wait_for(tmp_path / "a", 1)
    shutil.rmtree(tmp_path / "a" / "trial_0000")
    out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, out
    once_each(f"journal:{tmp_path}/study.log", tmp_path, 2, lost=0)


def test_pruned_trials_count_and_stop_early(tmp_path) -> None:
    class AfterTwo(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.number > 1 and trial.last_step == 2

    search = build(f"journal:{tmp_path}/study.log", tmp_path, 4, pruner=AfterTwo())
    search.run()
    assert states(search) == ["COMPLETE"] * 2 + ["PRUNED"] * 2
    assert [trial.user_attrs["validations"] for trial in search.study.trials()] == [3, 3, 2, 2]


def test_two_trials_at_a_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    search = build(
        f"journal:{tmp_path}/study.log",
        tmp_path,
        4,
        slots=[{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}],
    )
    began = time.monotonic()
    search.run()
    assert states(search) == ["COMPLETE"] * 4
    assert time.monotonic() - began < 4 * 0.9


def test_a_timeout_begins_no_further_trial_and_keeps_what_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.1")
    search = build(f"journal:{tmp_path}/study.log", tmp_path, 9, timeout=0.2)
    assert search.run() == 0
    assert 1 <= len(states(search)) < 9 and set(states(search)) == {"COMPLETE"}


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql", "mysql"])
def test_one_of_two_workers_is_killed_in_mid_trial(kind, tmp_path, request) -> None:
    storage = url(kind, tmp_path, request)
    first = start(storage, tmp_path / "a", 5, "another machine", seconds=5)  # so that only its silence can tell
    wait_for(tmp_path / "a", 1)
    second = start(storage, tmp_path / "b", 5)
    wait_for(tmp_path / "b", 1)
    first.kill()
    first.wait()
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 0 and "its worker died; it is begun again" in out, out
    once_each(storage, tmp_path, 5, lost=1)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_only_worker_is_killed_and_the_search_resumed(kind, tmp_path, request) -> None:
    storage = url(kind, tmp_path, request)
    first = start(storage, tmp_path / "a", 4, seconds=1)
    wait_for(tmp_path / "a", 2)
    first.kill()
    first.wait()
    out, _ = start(storage, tmp_path / "a", 4).communicate(timeout=60)
    assert "its worker died; it is begun again" in out
    once_each(storage, tmp_path, 4, lost=1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 2), (signal.SIGTERM, 15)])
def test_a_signal_keeps_everything(number, code, tmp_path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    first = start(storage, tmp_path / "a", 4, seconds=0.3)
    wait_for(tmp_path / "a", 2)
    child = int((tmp_path / "a" / "trial_0001" / "began").read_text())
    first.send_signal(number)
    out, _ = first.communicate(timeout=30)
    assert first.returncode == code and "trial 1  interrupted" in out
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    start(storage, tmp_path / "a", 4).communicate(timeout=60)
    once_each(storage, tmp_path, 4, lost=1)


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql", "mysql"])
def test_many_workers_that_begin_at_once_share_one_budget_exactly(kind, tmp_path, request) -> None:
    storage = url(kind, tmp_path, request)
    workers = [start(storage, tmp_path / "a", 9, seconds=0.01) for _ in range(4)]
    for worker in workers:
        out, _ = worker.communicate(timeout=60)
        assert worker.returncode == 0, out
    once_each(storage, tmp_path, 9, lost=0)
    assert len(list((tmp_path / "a").glob("trial_*/began"))) == 9


def test_a_result_that_could_not_be_told_is_taken_over(tmp_path, monkeypatch) -> None:
    search = build(f"journal:{tmp_path}/study.log", tmp_path, 2)
    monkeypatch.setattr(Study, "finish", lambda *_: (_ for _ in ()).throw(UserError("storage: full")))
    monkeypatch.setattr(Search, "_stop", lambda self: None)  # as if it had been killed
    with pytest.raises(UserError, match="storage: full"):
        search.run()
    monkeypatch.undo()
    monkeypatch.setattr("project.extras.search.study.gone", lambda worker: True)
    again = build(f"journal:{tmp_path}/study.log", tmp_path, 2)
    again.run()
    once_each(f"journal:{tmp_path}/study.log", tmp_path, 2, lost=0)
    assert (tmp_path / "trial_0000" / "began").read_text().count("\n") == 1


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_full_disk_loses_no_finished_trial(kind, tmp_path, request) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        storage = url(kind, disk, request)
        search = build(storage, tmp_path / "a", 3)
        search.study.optuna.set_user_attr("trials", 2)
        assert search.run() == 0
        search.study.optuna.set_user_attr("trials", 5)
        stuffing = (disk / "stuffing").open("wb", buffering=0)
        with suppress(OSError):
            while stuffing.write(bytes(512)):
                pass
        with pytest.raises(UserError, match=r"storage: .*make room") as caught:
            build(storage, tmp_path / "a", 5).run()
        assert "\n" not in str(caught.value)
        stuffing.close()
        (disk / "stuffing").unlink()
        assert build(storage, tmp_path / "a", 5).run() == 0
        kept = [trial for trial in build(storage, tmp_path, 5).study.trials() if counts(trial)]
        assert [trial.state for trial in kept] == [TrialState.COMPLETE] * 5
        assert len({trial.params["lr"] for trial in kept}) == 5
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_half_a_line_in_a_journal_is_taken_away(tmp_path) -> None:
    build(f"journal:{tmp_path}/study.log", tmp_path, 1).run()
    with (tmp_path / "study.log").open("a") as file:
        file.write('{"op_code":5,"work')
    again = build(f"journal:{tmp_path}/study.log", tmp_path, 2)
    assert again.run() == 0 and states(again) == ["COMPLETE"] * 2


def open_study(storage: str) -> Study:
    return Study(storage, "fake", "maximize", Seeded("tpe", 0), optuna.pruners.NopPruner())


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("study.db", "is no address"),
        ("journal:/nowhere/at/all/study.log", "there is no folder"),
        ("nonsense://x", "nonsense"),
        ("sqlite:///{folder}/text.db", "not a database"),
        ("journal:{folder}/text.db", "no journal"),
        ("postgresql://me:secret@127.0.0.1:9/none", "[^.]: is the server up"),
        ("mysql://me:secret@127.0.0.1:9/none", "^storage: mysql://127.0.0.1:9/none: [^(].*is the server up"),
        ("mysql://me:sec@ret@127.0.0.1:9/none", "write an @ in a password as %40"),
        ("journal:{folder}", "is a folder; give a file in it"),
    ],
)
def test_a_storage_that_is_none(storage, words, tmp_path) -> None:
    (tmp_path / "text.db").write_text("these are\nsome words\nand no database\n" * 100)
    if storage.startswith("postgresql"):
        pytest.importorskip("pg8000", reason="its Python driver is not installed")
    if storage.startswith("mysql"):
        pytest.importorskip("pymysql", reason="its Python driver is not installed")
    with pytest.raises(UserError, match=words) as caught:
        open_study(storage.format(folder=tmp_path)).trials()
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value) and "ret@" not in str(caught.value)


def test_a_wrong_password_is_said_in_the_servers_own_words() -> None:
    class DriverError(Exception):
        pass

    error = sqlalchemy.exc.DBAPIError(
        "SELECT 1", None, DriverError({"S": "FATAL", "C": "28P01", "M": "password failed"})
    )
    assert _reason(error) == "password failed"


def test_a_study_of_another_program(tmp_path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(storage=storage, study_name="fake", direction="maximize").optimize(
        lambda trial: 1.0, n_trials=1
    )
    with pytest.raises(UserError, match="did not make"):
        build(storage, tmp_path, 3)


def test_a_locked_database(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("project.extras.search.storage.LOCKED", 0.2)
    search = build(f"sqlite:///{tmp_path}/study.db", tmp_path, 3)
    with sqlite3.connect(tmp_path / "study.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match="database is locked: another program holds it"):
            search.run()


def test_a_search_that_is_there_is_not_gone_on_with_unasked(tmp_path) -> None:
    search = build(f"sqlite:///{tmp_path}/study.db", tmp_path, 1)
    search.run()
    with pytest.raises(UserError, match="--resume goes on with it"):
        search.study.begin({"space": {}}, 3, join=False)


def test_other_settings_are_shown() -> None:
    then = {"metric": "val/acc", "space": {"model.lr": {"float": [0, 1]}, "a": {"int": [1, 2]}}, "fit": {"model.x": 1}}
    now = {"metric": "val/loss", "space": {"model.lr": {"float": [0, 2]}, "b": {"int": [1, 2]}}, "fit": {"model.x": 1}}
    assert differences(then, then) == []
    assert differences(then, now) == [
        "metric is val/loss, and was val/acc",
        "space: model.lr is {'float': [0, 2]}, and was {'float': [0, 1]}",
        "space: b is {'int': [1, 2]}, and was absent",
        "space: a is absent, and was {'int': [1, 2]}",
    ]


def test_draws_follow_from_seed_and_number(tmp_path) -> None:
    def draws(seed: int, place: str) -> list[float]:
        study = optuna.create_study(sampler=Seeded("tpe", seed))
        return [study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}).params["x"] for _ in range(4)]

    assert draws(0, "a") == draws(0, "b") != draws(1, "c")
    assert len(set(draws(0, "a"))) == 4


def test_a_worker_is_gone_when_its_process_is() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    place, _, _ = whoami().rsplit(" ", 2)
    ticks = (
        Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
        if Path("/proc/self").exists()
        else "runs"
    )
    assert not gone(whoami()) and not gone(f"{place} {other.pid} {ticks}")
    other.kill()
    other.wait()
    assert gone(f"{place} {other.pid} {ticks}") and not gone(f"elsewhere/1 {other.pid} {ticks}") and not gone(None)
