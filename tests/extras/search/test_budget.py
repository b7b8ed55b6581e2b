"""The budget: exact for any number of workers, nothing lost, nothing counted twice."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from optuna.trial import TrialState

from .conftest import budget_of


def states(budget) -> list[str]:
    return [trial.state.name for trial in budget.study.trials]


@pytest.fixture(params=["sqlite", "journal"])
def address(request, tmp_path) -> str:
    return {"sqlite": f"sqlite:///{tmp_path}/study.db?timeout=20", "journal": f"journal:{tmp_path}/log"}[request.param]


def test_a_budget_is_spent_exactly(address) -> None:
    budget = budget_of(address, 2)
    assert budget.left() == 2 and not budget.running()
    first, second = budget.claim(), budget.claim()
    assert budget.claim() is None and len(budget.running()) == 2
    budget.study.tell(first, 0.5)
    second.set_user_attr("error", "boom")
    budget.study.tell(second, state=TrialState.FAIL)
    assert budget.claim() is None and budget.left() == 0  # a failed trial counts
    assert budget_of(address, 3).claim().number == 2  # a larger budget extends the search


def test_an_interrupted_trial_is_done_again_with_its_values(address) -> None:
    budget = budget_of(address, 1)
    lr = budget.claim().suggest_float("lr", 0, 1)
    budget.requeue(budget.study.trials[0])
    assert budget.left() == 1 and states(budget) == ["FAIL", "WAITING"]
    again = budget.claim()
    assert again.number == 1 and again.suggest_float("lr", 0, 1) == lr and budget.claim() is None


def test_a_dead_workers_trial_is_taken_over_and_it_cannot_count_twice(address) -> None:
    dead, other = budget_of(address, 1), budget_of(address, 1)
    trial = dead.claim()
    lr = trial.suggest_float("lr", 0, 1)
    assert other.claim() is None  # it lives
    trial.set_user_attr("beat", time.time() - 181)  # three heartbeats of 60 seconds
    again = other.claim()
    assert again.suggest_float("lr", 0, 1) == lr
    with pytest.raises(RuntimeError):  # what tells the first that it was only asleep
        dead.beat(trial)
    assert dead.study.tell(trial, 0.5, skip_if_finished=True).state is TrialState.FAIL
    other.study.tell(again, 0.5)
    assert other.left() == 0 and not other.running()


def test_values_that_kill_their_worker_are_tried_three_times(tmp_path) -> None:
    budget, tried = budget_of(f"journal:{tmp_path}/log", 1), []
    for _ in range(4):
        trial = budget.claim()
        tried.append(trial.suggest_float("lr", 0, 1))
        trial.set_user_attr("beat", 0.0)
    assert tried[0] == tried[1] == tried[2] != tried[3]


def spend(address: str) -> int:
    budget, done = budget_of(address, 6), 0
    while (trial := budget.claim()) is not None:
        trial.suggest_float("lr", 0, 1)
        budget.study.tell(trial, 0.5)
        done += 1
    return done


def all_spent(address: str) -> None:
    budget_of(address, 6)  # the tables are there
    with ThreadPoolExecutor(3) as pool:
        done = sum(pool.map(spend, [address] * 3))
    trials = budget_of(address, 6).study.trials
    assert done == 6 == sum(trial.state is TrialState.COMPLETE for trial in trials)
    assert len({trial.params["lr"] for trial in trials if trial.state is TrialState.COMPLETE}) == 6


def test_workers_that_come_at_once_share_one_budget(address) -> None:
    all_spent(address)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgresql", "mysql"])
def test_workers_share_one_budget_in_a_server(kind, request) -> None:
    all_spent(request.getfixturevalue(kind))
