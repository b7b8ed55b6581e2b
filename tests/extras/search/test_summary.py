"""The table, trials.csv and the pictures, of trials made by hand."""

import csv

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from project.extras.search.summary import conclude

DISTRIBUTIONS = {"model.lr": FloatDistribution(0, 1), "model.optimizer": CategoricalDistribution(["sgd", "adamw"])}


def study_of(rows: list[tuple[str, float | None, dict]], mode: str = "max") -> optuna.Study:
    """(state, score, further attributes) -> a study; every other trial has an optimizer beside its model.lr."""
    study = optuna.create_study(direction=f"{mode}imize")
    for i, (state, score, more) in enumerate(rows):
        params = {"model.lr": i / 100, **({"model.optimizer": "sgd"} if i % 2 else {})}
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                value=score if state == "COMPLETE" else None,
                params=params,
                distributions={key: DISTRIBUTIONS[key] for key in params},
                user_attrs=more if more.get("lost") else {"score": score, **more},
                intermediate_values={1: score or 0.0, 2: 0.0},
            )
        )
    return study


ROWS = [
    ("COMPLETE", 0.8, {}),
    ("PRUNED", 0.9, {}),
    ("FAIL", None, {"error": "RuntimeError: boom, with a comma"}),
    ("FAIL", None, {"lost": True}),  # interrupted: it does not count
    ("COMPLETE", 0.85, {}),
    ("COMPLETE", 0.85, {}),
]


@pytest.mark.parametrize(("mode", "number"), [("max", 4), ("min", 0)])
def test_the_best_is_the_first_of_the_best_completed_trials(mode, number, tmp_path) -> None:
    assert conclude(study_of(ROWS, mode), tmp_path, [*DISTRIBUTIONS], "val/acc").number == number
    assert conclude(study_of(ROWS[1:4], mode), tmp_path, [*DISTRIBUTIONS], "val/acc") is None


def test_the_files(tmp_path, capsys) -> None:
    conclude(study_of(ROWS), tmp_path, [*DISTRIBUTIONS], "val/acc")
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "4", "5"]
    assert [row["state"] for row in rows] == ["complete", "pruned", "fail", "complete", "complete"]
    assert [row["val/acc"] for row in rows] == ["0.8", "0.9", "", "0.85", "0.85"]
    assert rows[2]["error"] == "RuntimeError: boom, with a comma" and rows[1]["model.optimizer"] == "sgd"
    assert {row["validations"] for row in rows} == {"2"} and rows[0]["model.optimizer"] == ""
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "importance.png").exists()  # too few to tell
    out = capsys.readouterr().out
    assert "5 trials, 3 completed" in out and "trial 4  val/acc 0.85  model.lr 0.04  complete: 2 validations" in out


def test_importance_is_drawn_of_enough_trials_that_differ(tmp_path) -> None:
    conclude(study_of([("COMPLETE", 0.5, {})] * 9), tmp_path, [*DISTRIBUTIONS], "val/acc")
    assert not (tmp_path / "importance.png").exists()
    conclude(study_of([("COMPLETE", i / 10, {}) for i in range(9)]), tmp_path, [*DISTRIBUTIONS], "val/acc")
    assert (tmp_path / "importance.png").read_bytes().startswith(b"\x89PNG")
