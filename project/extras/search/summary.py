"""What a search has found: the best trials, trials.csv, two pictures (advice A1)."""

import csv
from pathlib import Path

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

from project.extras.search.worker import line
from project.files import written_whole

SHOWN = 5  # trials that are printed
ENOUGH = 8  # completed trials, below which an importance is noise


def conclude(study: optuna.Study, folder: Path, keys: list[str], metric: str) -> FrozenTrial | None:
    """Write and print what is known so far; the best completed trial, of equal ones the first."""
    trials = [trial for trial in study.trials if "score" in trial.user_attrs]
    completed = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    completed.sort(key=lambda trial: trial.value, reverse=study.direction is StudyDirection.MAXIMIZE)
    with written_whole(folder / "trials.csv") as draft, draft.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["trial", "state", metric, "validations", "seconds", *keys, "error"])
        for trial in trials:
            score, seconds = trial.user_attrs["score"], trial.duration.total_seconds()
            head = [trial.number, trial.state.name.lower(), score, len(trial.intermediate_values), seconds]
            rows.writerow([*head, *map(trial.params.get, keys), trial.user_attrs.get("error")])
    print(f"\n{len(trials)} trials, {len(completed)} completed; the best of them:")
    for trial in completed[:SHOWN]:
        print(line(trial, metric))
    pictures = {}
    if completed:
        pictures["history.png"] = plots.plot_optimization_history(study, target_name=metric)
    if len(completed) >= ENOUGH and completed[0].value != completed[-1].value:
        pictures["importance.png"] = plots.plot_param_importances(study, target_name=metric)
    for name, axes in pictures.items():
        with written_whole(folder / name) as draft:
            axes.figure.savefig(draft, dpi=150, bbox_inches="tight")
    return completed[0] if completed else None
