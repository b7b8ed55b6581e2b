"""Table, trials.csv, importance, pictures and the nested report, against sums made by hand."""

import csv
import statistics

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from project.extras.search import summary
from project.extras.search.nested import report

SPACE = {"model.lr": FloatDistribution(0, 1), "model.optimizer": CategoricalDistribution(["sgd", "adamw"])}
MOMENTUM = {"model.optimizer.init_args.momentum": FloatDistribution(0, 1)}


def trials_of(rows: list[tuple[dict, str, float | None, dict]]) -> list[FrozenTrial]:
    """(values, state, best score, further attributes) -> the trials of a study."""
    study = optuna.create_study(direction="maximize")
    for values, state, best, more in rows:
        attributes = {"validations": 3, "seconds": 1.5, **({} if best is None else {"best": best}), **more}
        distributions = {key: {**SPACE, **MOMENTUM}[key] for key in values}
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState[state],
                value=best if state == "COMPLETE" else None,
                params=values,
                distributions=distributions,
                user_attrs=attributes,
            )
        )
    return study.trials


@pytest.fixture
def some() -> list[FrozenTrial]:
    return trials_of(
        [
            ({"model.lr": 0.1, "model.optimizer": "adamw"}, "COMPLETE", 0.8, {}),
            ({"model.lr": 0.2, "model.optimizer": "sgd", "model.optimizer.init_args.momentum": 0.5}, "PRUNED", 0.9, {}),
            ({"model.lr": 0.3, "model.optimizer": "adamw"}, "FAIL", None, {"error": "RuntimeError: boom"}),
            ({"model.lr": 0.4, "model.optimizer": "adamw"}, "FAIL", None, {}),  # interrupted: it does not count
            ({"model.lr": 0.5, "model.optimizer": "adamw"}, "COMPLETE", 0.85, {}),
        ]
    )


def test_the_best_is_a_completed_trial(some) -> None:
    assert summary.best_trial(some, True).number == 4
    assert summary.best_trial(some, False).number == 0
    assert summary.best_trial(some[1:4], True) is None


def test_of_equal_trials_the_first_is_best() -> None:
    trials = trials_of([({"model.lr": x, "model.optimizer": "sgd"}, "COMPLETE", 0.5, {}) for x in (0.1, 0.2)])
    assert summary.best_trial(trials, True).number == summary.best_trial(trials, False).number == 0


def test_rank(some) -> None:
    assert [trial.number for trial in summary.ranked(some, True)] == [4, 0, 1, 2]
    assert [trial.number for trial in summary.ranked(some, False)] == [0, 4, 1, 2]


def test_table(some) -> None:
    lines = summary.table(some, [*SPACE, *MOMENTUM], "val/acc", True)
    assert lines[0].split() == ["trial", "val/acc", "validations", "lr", "optimizer", "momentum"]
    assert lines[1].split() == ["4", "0.8500", "3", "0.5", "adamw", "-"]
    assert lines[3].split() == ["1", "0.9000", "3", "pruned", "0.2", "sgd", "0.5"]
    assert lines[4].split() == ["2", "-", "3", "failed", "0.3", "adamw", "-"]
    assert lines[-1] == "4 trials: 2 complete, 1 pruned, 1 failed; 12 validations in all"


def test_short_names_are_the_shortest_that_tell_keys_apart() -> None:
    assert summary.short_keys(["model.lr", "data.size", "model.size", "lr"]) == {
        "model.lr": "model.lr",
        "data.size": "data.size",
        "model.size": "model.size",
        "lr": "lr",
    }


def test_csv_has_every_trial_that_counts_in_full(some, tmp_path) -> None:
    summary.write_csv(tmp_path / "trials.csv", some, [*SPACE, *MOMENTUM], "val/acc", True)
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["4", "0", "1", "2"]
    assert rows[3]["error"] == "RuntimeError: boom" and rows[3]["state"] == "fail"
    assert (
        float(rows[2]["model.optimizer.init_args.momentum"]) == 0.5
        and rows[0]["model.optimizer.init_args.momentum"] == ""
    )


def test_importance_is_that_of_the_key_that_makes_the_score() -> None:
    random = np.random.default_rng(0)
    rows = []
    for i in range(40):
        lr, optimizer, momentum = random.random(), ["sgd", "adamw"][i % 2], random.random()
        values = {"model.lr": lr, "model.optimizer": optimizer}
        if optimizer == "sgd":
            values["model.optimizer.init_args.momentum"] = momentum
        score = lr + 0.05 * (optimizer == "sgd") + (3 * momentum if optimizer == "sgd" else 0)
        rows.append((values, "PRUNED" if i % 3 else "COMPLETE", score, {}))
    keys = [*SPACE, *MOMENTUM]
    shares = summary.importances(trials_of(rows), keys, True)
    assert set(shares) == set(keys) and list(shares.values()) == sorted(shares.values(), reverse=True)
    assert (
        next(iter(shares)) == "model.optimizer.init_args.momentum"
        and shares["model.optimizer.init_args.momentum"] > 0.6
    )
    only_lr = [(values, state, values["model.lr"], more) for values, state, _, more in rows]
    shares = summary.importances(trials_of(only_lr), keys, True)
    assert shares["model.lr"] > 0.9


def test_importance_of_too_few_or_equal_scores_is_not_given(some) -> None:
    assert summary.importances(some, list(SPACE), True) == {}
    equal = trials_of([({"model.lr": i / 10, "model.optimizer": "sgd"}, "COMPLETE", 0.5, {}) for i in range(10)])
    assert summary.importances(equal, list(SPACE), True) == {}


def test_history_shows_the_best_completed_score_so_far(some) -> None:
    axes = summary.history(some, "val/acc", True).axes[0]
    line = axes.get_lines()[0]
    assert list(line.get_xdata()) == [0, 4, 4] and list(line.get_ydata()) == [0.8, 0.85, 0.85]
    assert list(summary.history(some, "val/acc", False).axes[0].get_lines()[0].get_ydata()) == [0.8, 0.8, 0.8]


def test_pictures_are_written_also_of_nothing(some, tmp_path) -> None:
    assert [path.name for path in summary.write_pictures(tmp_path, [], {}, "val/acc", True)] == ["history.png"]
    shares = {"model.lr": 0.7, "model.optimizer": 0.0}
    for path in summary.write_pictures(tmp_path, some, shares, "val/acc", True):
        assert path.read_bytes().startswith(b"\x89PNG")
    figure = summary.importance_figure(shares, "val/acc")
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.7, 0.0]


@pytest.mark.parametrize(("maximise", "sign"), [(True, 1), (False, -1)])
def test_nested_report(maximise, sign) -> None:
    folds = [{"inner": 0.9, "outer": 0.8}, {"inner": 0.95, "outer": 0.9}, {"inner": 0.85, "outer": 0.86}]
    numbers, lines = report(folds, "val/acc", maximise)
    gaps = [sign * (fold["inner"] - fold["outer"]) for fold in folds]
    assert numbers["gap"]["mean"] == pytest.approx(sum(gaps) / 3) and numbers["gap"]["sd"] == pytest.approx(
        statistics.stdev(gaps)
    )
    assert numbers["outer"]["mean"] == pytest.approx(np.mean([0.8, 0.9, 0.86]))
    assert lines[1].split() == ["0", "0.9000", "0.8000", f"{gaps[0]:+.4f}"]
    assert [line.split()[0] for line in lines[4:6]] == ["mean", "spread"]
