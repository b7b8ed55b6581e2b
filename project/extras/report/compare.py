"""Several runs on one page: results side by side, curves over each other, and what differs in their settings."""

from typing import Any

from project.extras.report.page import curves, render
from project.extras.report.run import Run
from project.run.paths import flatten

CURVES = {
    "val/acc": "Validation accuracy",
    "val/loss": "Validation loss",
    "train/loss": "Training loss",
    "train/acc": "Training accuracy",
}


def comparison_page(runs: list[Run], made: str) -> str:
    """The page of two runs or more, from their records alone; HTML.

    Args:
        runs: Their records.
        made: When the page was made.
    """
    unique = len({run.name for run in runs}) == len(runs)
    named = {run.name if unique else str(run.folder): run for run in runs}
    scores = [(score, name) for name, run in named.items() if (score := run.score("val/acc")) is not None]
    pictures = {}
    for tag, title in CURVES.items():
        series = {name: run.curves[tag] for name, run in named.items() if tag in run.curves}
        pictures[title] = curves(series, title.lower())
    return render(
        "comparison.html.j2",
        runs=named,
        made=made,
        best=max(scores, default=None),
        pictures=pictures,
        settings=differences([flatten(run.config) for run in runs]),
        origins=differences([run.origin for run in runs]),
    )


def differences(values: list[dict[str, Any]]) -> list[list[Any]]:
    """A row for each key that is not the same everywhere: the key, then its value in each run."""
    keys = dict.fromkeys(key for each in values for key in each)
    rows = [[key, *(each.get(key, "not set") for each in values)] for key in keys]
    return [row for row in rows if any(value != row[1] for value in row[2:])]
