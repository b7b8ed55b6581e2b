"""Early stopping of trials, against a count by hand of who is among the best third."""

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from project.extras.search.pruner import UNKNOWN, make_pruner, planned_validations

TRAINER = {"max_epochs": 20, "max_steps": -1, "val_check_interval": None, "check_val_every_n_epoch": 1}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 20),
        ({"check_val_every_n_epoch": 3}, 6),
        ({"val_check_interval": 0.25}, 80),
        ({"val_check_interval": 1.0}, 20),
        ({"val_check_interval": 50}, UNKNOWN),  # batches: how many an epoch has is not in the configuration
        ({"max_epochs": -1}, UNKNOWN),
        ({"max_epochs": None}, UNKNOWN),
        ({"max_steps": 500}, UNKNOWN),
        ({"max_epochs": 1, "check_val_every_n_epoch": 5}, 1),
    ],
)
def test_planned_validations(changed, expected) -> None:
    assert planned_validations({**TRAINER, **changed}) == expected


def stopped_at(pruner: optuna.pruners.BasePruner, curves: np.ndarray) -> list[int]:
    """For each trial in turn: the validation after which it is pruned, else that of its end."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    found = []
    for curve in curves:
        trial, state = study.ask(), optuna.trial.TrialState.COMPLETE
        for step, score in enumerate(curve, start=1):
            trial.report(float(score), step)
            if trial.should_prune():
                state = optuna.trial.TrialState.PRUNED
                break
        study.tell(trial, None if state is optuna.trial.TrialState.PRUNED else float(max(curve)), state)
        found.append(step)
    return found


def by_hand(curves: np.ndarray, rung: int) -> list[int]:
    """At the rung a trial goes on when it is among the best third of all that got there, at least one."""
    seen: list[float] = []
    found = []
    for curve in curves:
        seen.append(curve[rung - 1])
        bar = sorted(seen, reverse=True)[max(1, len(seen) // 3) - 1]
        found.append(len(curve) if curve[rung - 1] >= bar else rung)
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 20))
def test_asha_looks_at_a_fifth_and_keeps_the_best_third(seed, validations) -> None:
    curves = np.random.default_rng(seed).random((15, validations))
    assert stopped_at(make_pruner("asha", validations), curves) == by_hand(curves, -(-validations // 5))


def test_after_the_middle_no_trial_is_stopped() -> None:
    """Those that are best at the end may be worst at three fifths: they are let go on."""
    early = np.linspace(0.5, 0.6, 12)  # each beats all before at the first look
    curves = np.array([[*[score] * 3, *[1 - score] * 8, *[score + 0.3] * 4] for score in early])
    assert stopped_at(make_pruner("asha", 15), curves) == [15] * 12
    everywhere = optuna.pruners.SuccessiveHalvingPruner(min_resource=3, reduction_factor=3)
    assert set(stopped_at(everywhere, curves)) == {9, 15}  # which, looking at 9 too, stops most


def test_median_waits_for_five_trials_and_a_fifth() -> None:
    curves = np.vstack([np.full((5, 10), 0.5), np.full((2, 10), 0.1)])
    assert stopped_at(make_pruner("median", 10), curves) == [10] * 5 + [3] * 2


@pytest.mark.parametrize("validations", [1, 2, 3])
@pytest.mark.parametrize("kind", ["asha", "median", "none"])
def test_short_trainings(kind, validations) -> None:
    curves = np.random.default_rng(0).random((12, validations))
    stopped = stopped_at(make_pruner(kind, validations), curves)
    assert all(1 <= step <= validations for step in stopped)
    assert kind != "none" or stopped == [validations] * 12


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_trial_that_has_had_its_last_validation_is_never_called_pruned(kind) -> None:
    for validations in (1, 2, 3, 5):
        study = optuna.create_study(direction="maximize", pruner=make_pruner(kind, validations))
        for score in np.linspace(0.9, 0.1, 12):
            trial = study.ask()
            for step in range(1, validations):
                trial.report(1.0, step)
            trial.report(score, validations)
            assert not trial.should_prune()
            study.tell(trial, score)
