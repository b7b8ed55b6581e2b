"""A trial's word to its study, and early stopping against a count by hand of who is among the best third."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState
from torch.utils.data import DataLoader

from project.extras.search.report_trial import ReportTrial, make_pruner

from .conftest import budget_of


def trainer_of(value: float, step: int = 1, steps: float = 10, **changes) -> SimpleNamespace:
    known = {
        "is_global_zero": True,
        "sanity_checking": False,
        "should_stop": False,
        "state": SimpleNamespace(fn="fit"),
        "callback_metrics": {"val/acc": value},
        "strategy": SimpleNamespace(broadcast=lambda answer: answer),
        "global_step": step,
        "estimated_stepping_batches": steps,
    }
    return SimpleNamespace(**{**known, **changes})


MODULE = SimpleNamespace(check_metric=lambda key, name: None)


@pytest.fixture
def address(tmp_path) -> str:
    return f"journal:{tmp_path}/log"


def test_scores_are_reported_to_the_study(address) -> None:
    budget = budget_of(address, 1)
    budget.claim()
    callback = ReportTrial(address, "fake", 0)
    callback.on_fit_start(trainer_of(0), MODULE)
    for step, score in ((1, 0.25), (2, float("nan"))):
        callback.on_validation_end(trainer := trainer_of(score, step), None)
        assert not trainer.should_stop
    for change in ({"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}):
        callback.on_validation_end(trainer_of(0.5, **change), None)
    reported = budget.study.trials[0].intermediate_values
    assert reported[1] == 0.25 and np.isnan(reported[2]) and len(reported) == 2


def test_a_trial_that_was_taken_over_stops(address) -> None:
    budget = budget_of(address, 1)
    budget.claim()
    callback = ReportTrial(address, "fake", 0)
    callback.on_fit_start(trainer_of(0), MODULE)
    budget.requeue(budget.study.trials[0])
    callback.on_validation_end(trainer := trainer_of(0.25), None)
    assert trainer.should_stop


def test_a_trial_that_has_ended_is_trained_further_by_hand(address) -> None:
    budget = budget_of(address, 1)
    budget.study.tell(budget.claim(), 0.5)
    callback = ReportTrial(address, "fake", 0)
    callback.on_fit_start(trainer_of(0), MODULE)
    callback.on_validation_end(trainer := trainer_of(0.25), None)
    assert not trainer.should_stop and not budget.study.trials[0].intermediate_values


def stopped_at(kind: str, curves: np.ndarray) -> list[int]:
    """For each trial in turn: the validation after which it is pruned, else that of its end."""
    study = optuna.create_study(direction="maximize")
    found = []
    for curve in curves:
        callback = ReportTrial("", "", 0, pruner=kind)
        callback.trial = study.ask()
        for step, score in enumerate(curve, start=1):
            callback.on_validation_end(trainer := trainer_of(score, 7 * step, 7 * len(curve)), None)
            if trainer.should_stop:
                break
        attributes = study.trials[-1].user_attrs
        assert trainer.should_stop == ("pruned" in attributes)
        state = TrialState.PRUNED if trainer.should_stop else TrialState.COMPLETE
        study.tell(callback.trial, None if trainer.should_stop else max(curve), state)
        found.append(step)
    return found


def by_hand(curves: np.ndarray, rung: int) -> list[int]:
    """At the rung a trial continues when it is among the best third of all that got there, at least one."""
    seen: list[float] = []
    found = []
    for curve in curves:
        seen.append(curve[rung - 1])
        bar = sorted(seen, reverse=True)[max(1, len(seen) // 3) - 1]
        found.append(len(curve) if curve[rung - 1] >= bar else rung)
    return found


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 20))
def test_asha_looks_at_a_fifth_and_keeps_the_best_third(seed, validations) -> None:
    curves = np.random.default_rng(seed).random((15, validations))
    assert stopped_at("asha", curves) == by_hand(curves, -(-validations // 5))


def test_after_the_middle_no_trial_is_stopped() -> None:
    """Those that are best at the end may be worst at three fifths."""
    early = np.linspace(0.5, 0.6, 12)  # each beats all before at the first look
    curves = np.array([[*[score] * 3, *[1 - score] * 8, *[score + 0.3] * 4] for score in early])
    assert stopped_at("asha", curves) == [15] * 12


def test_median_waits_for_five_trials_and_a_fifth() -> None:
    curves = np.vstack([np.full((5, 10), 0.5), np.full((2, 10), 0.1)])
    assert stopped_at("median", curves) == [10] * 5 + [3] * 2


@pytest.mark.parametrize("kind", ["asha", "median", "none"])
def test_short_trainings(kind) -> None:
    for validations in (1, 2, 3):
        curves = np.random.default_rng(0).random((12, validations))
        stopped = stopped_at(kind, curves)
        assert all(1 <= step <= validations for step in stopped)
        assert (kind != "none" and validations > 1) or stopped == [validations] * 12


def test_where_only_the_time_is_limited_no_trial_is_stopped(address) -> None:
    for number in range(4):
        budget_of(address, 9).claim()
        callback = ReportTrial(address, "fake", number, pruner="asha")
        callback.on_fit_start(trainer_of(0), MODULE)
        callback.on_validation_end(trainer := trainer_of(-number, 1, float("inf")), None)
        assert not trainer.should_stop


@pytest.mark.parametrize(
    ("kind", "type_"), [("asha", SuccessiveHalvingPruner), ("median", MedianPruner), ("none", NopPruner)]
)
def test_pruners_have_names(kind, type_) -> None:
    assert isinstance(make_pruner(kind, 15), type_)


class Count(L.LightningModule):
    """Reports the share of the training that is done, which a callback is to find."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.check_metric, self.done = torch.nn.Linear(1, 1), lambda key, name: None, []

    def training_step(self, batch, index):
        return self.layer(batch).sum()

    def validation_step(self, batch, index) -> None:
        self.log("val/acc", 0.5)

    def on_validation_end(self) -> None:
        self.done.append(self.trainer.global_step / self.trainer.estimated_stepping_batches)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 0.5}, {"accumulate_grad_batches": 2}])
def test_lightning_counts_steps_as_the_callback_expects(options) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = L.Trainer(accelerator="cpu", max_epochs=3, num_sanity_val_steps=0, **quiet, **options)
    loader, module = DataLoader(torch.zeros(8, 1), batch_size=1), Count()
    trainer.fit(module, loader, loader)
    assert module.done == pytest.approx(np.arange(1, len(module.done) + 1) / len(module.done))
