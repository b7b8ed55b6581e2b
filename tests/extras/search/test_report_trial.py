"""A trial's word to its search: sent after every validation, and obeyed."""

import json
import socket
from types import SimpleNamespace

import pytest

from project.errors import UserError
from project.extras.search import trial
from project.extras.search.report_trial import TRIAL, ReportTrial, Trial


def trainer_of(value: float) -> SimpleNamespace:
    return SimpleNamespace(
        is_global_zero=True,
        sanity_checking=False,
        should_stop=False,
        state=SimpleNamespace(fn="fit"),
        callback_metrics={"val/acc": value},
        strategy=SimpleNamespace(broadcast=lambda answer: answer),
    )


@pytest.fixture
def both():
    ours, theirs = socket.socketpair()
    callback = ReportTrial(Trial("val/acc", theirs.fileno(), {}))
    callback.on_fit_start(trainer_of(0), SimpleNamespace(check_metric=lambda key, name: None))
    yield ours, theirs, callback
    ours.close()
    theirs.close()


def test_the_score_is_sent_and_the_answer_obeyed(both) -> None:
    ours, _, callback = both
    trainer = trainer_of(0.25)
    ours.sendall(b"go\nstop\n")
    callback.on_validation_end(trainer, None)
    assert not trainer.should_stop
    callback.on_validation_end(trainer, None)
    assert trainer.should_stop
    assert [json.loads(line) for line in ours.recv(999).splitlines()] == [
        {"step": 1, "value": 0.25},
        {"step": 2, "value": 0.25},
    ]


def test_a_search_that_has_died_stops_its_trial(both) -> None:
    ours, theirs, callback = both
    theirs.close()
    ours.close()
    trainer = trainer_of(0.25)
    callback.on_validation_end(trainer, None)
    assert trainer.should_stop


def test_other_loops_and_sanity_checks_are_no_scores(both) -> None:
    ours, _, callback = both
    ours.setblocking(False)
    for change in ({"sanity_checking": True}, {"state": SimpleNamespace(fn="validate")}):
        trainer = trainer_of(0.25)
        vars(trainer).update(change)
        callback.on_validation_end(trainer, None)
    with pytest.raises(BlockingIOError):
        ours.recv(1)


def test_an_unknown_metric_is_told_before_anything_is_trained() -> None:
    ours, theirs = socket.socketpair()

    def refuse(key: str, name: str) -> None:
        raise UserError(f"{key}: no metric {name!r}")

    ours.sendall(b"stop\n")
    with pytest.raises(UserError):
        ReportTrial(Trial("val/f1", theirs.fileno(), {})).on_fit_start(
            trainer_of(0), SimpleNamespace(check_metric=refuse)
        )
    assert json.loads(ours.recv(999)) == {"refused": "metric: no metric 'val/f1'"}


def test_both_sides_mean_the_same_variable() -> None:
    assert TRIAL == trial.TRIAL
