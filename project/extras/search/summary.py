"""What a search has found: a table, best.yaml, the importance of each hyperparameter, two pictures (advice A1)."""

import csv
import io
import math
import warnings
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from project.extras.search.study import counts
from project.files import written_whole

SHOWN = 10  # rows of the printed table
ENOUGH = 8  # trials with a score, below which an importance is noise
WIDTH = 28  # characters of a printed value


def best_trial(trials: list[FrozenTrial], maximise: bool) -> FrozenTrial | None:
    """The completed trial with the best score; of equal ones the first, which the search has known longest."""
    done = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    return max(done, key=lambda trial: (trial.value if maximise else -trial.value, -trial.number), default=None)


def ranked(trials: list[FrozenTrial], maximise: bool) -> list[FrozenTrial]:
    """Completed trials by their score, then pruned ones by theirs, then those that failed; the surplus and the lost left out."""
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1, TrialState.FAIL: 2}

    def place(trial: FrozenTrial) -> tuple[int, float, int]:
        score = trial.user_attrs.get("best")
        return order[trial.state], math.inf if score is None else -score if maximise else score, trial.number

    return sorted((trial for trial in trials if trial.state in order and counts(trial)), key=place)


def short_keys(keys: list[str]) -> dict[str, str]:
    """Key -> its shortest ending that no other key shares: model.optimizer.init_args.momentum -> momentum."""
    found = {}
    for key in keys:
        parts = key.split(".")
        endings = [".".join(parts[i:]) for i in range(len(parts) - 1, -1, -1)]
        others = [f".{other}" for other in keys if other != key]
        found[key] = next((end for end in endings if not any(other.endswith(f".{end}") for other in others)), key)
    return found


def table(trials: list[FrozenTrial], keys: list[str], metric: str, maximise: bool) -> list[str]:
    """The best trials as aligned lines, and a line of how many ended how."""
    if not ranked(trials, maximise):
        return [totals(trials)]
    rows = [["trial", metric, "validations", "", *short_keys(keys).values()]]
    for trial in ranked(trials, maximise)[:SHOWN]:
        score = trial.user_attrs.get("best")
        state = {"PRUNED": "pruned", "FAIL": "failed"}.get(trial.state.name, "")
        values = [shown(trial.params.get(key)) for key in keys]
        rows.append(
            [
                str(trial.number),
                "-" if score is None else f"{score:.4f}",
                str(trial.user_attrs["validations"]),
                state,
                *values,
            ]
        )
    columns = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
    widths = {i: max(len(row[i]) for row in rows) for i in columns}
    lines = [
        "  ".join(row[i].rjust(widths[i]) if i < 3 else row[i].ljust(widths[i]) for i in columns).rstrip()
        for row in rows
    ]
    return [*lines, totals(trials)]


def totals(trials: list[FrozenTrial]) -> str:
    counted = [trial for trial in trials if counts(trial)]
    states = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.RUNNING,
    }
    parts = [
        f"{number} {name}"
        for name, state in states.items()
        if (number := sum(trial.state is state for trial in counted))
    ]
    validations = sum(trial.user_attrs.get("validations", 0) for trial in counted)
    return f"{len(counted)} trial{'s' * (len(counted) != 1)}: {', '.join(parts) or 'none'}; {validations} validations in all"


def shown(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"


def write_csv(path: Path, trials: list[FrozenTrial], keys: list[str], metric: str, maximise: bool) -> None:
    """trials.csv: every trial that counts, with all its values in full."""
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["trial", "state", metric, "validations", "seconds", *keys, "error"])
    for trial in ranked(trials, maximise):
        known = trial.user_attrs
        head = [
            trial.number,
            trial.state.name.lower(),
            *(known.get(name, "") for name in ("best", "validations", "seconds")),
        ]
        rows.writerow([*head, *(trial.params.get(key, "") for key in keys), known.get("error", "")])
    with written_whole(path) as draft:
        draft.write_text(text.getvalue())


def importances(trials: list[FrozenTrial], keys: list[str], maximise: bool) -> dict[str, float]:
    """Share of the score's variance that each key explains (fANOVA: Hutter, Hoos & Leyton-Brown 2014), largest first.

    A pruned trial counts with the best score it had: the few that are never pruned are too alike to tell much. A key with a
    condition is weighed among the trials that have it, so the shares need not sum to one.

    Returns:
        {} with fewer than eight scores; keys that never varied are left out.
    """
    scored = [
        trial
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and "best" in trial.user_attrs
    ]
    always = [key for key in keys if all(key in trial.params for trial in scored)]
    found: dict[str, float] = {}
    for group in ([], *([key] for key in keys if key not in always)):
        part = [trial for trial in scored if all(key in trial.params for key in group)]
        names = [key for key in always + group if len({trial.params[key] for trial in part}) > 1]
        if len(part) < ENOUGH or not names or len({trial.user_attrs["best"] for trial in part}) < 2:
            continue
        study = _copy(part, names, maximise)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=names)
        found |= {key: float(share) for key, share in shares.items() if not group or key in group}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _copy(trials: list[FrozenTrial], names: list[str], maximise: bool) -> optuna.Study:
    """A study in memory, in which every trial is complete with its best score."""
    study = optuna.create_study(direction="maximize" if maximise else "minimize")
    for trial in trials:
        study.add_trial(
            optuna.trial.create_trial(
                params={key: trial.params[key] for key in names},
                distributions={key: trial.distributions[key] for key in names},
                value=trial.user_attrs["best"],
            )
        )
    return study


def history(trials: list[FrozenTrial], metric: str, maximise: bool) -> Figure:
    """Every trial's score in the order of their numbers, and the best completed one so far."""
    scored = [trial for trial in trials if "best" in trial.user_attrs and trial.state.is_finished()]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for state, colour, marker in ((TrialState.COMPLETE, "#0072B2", "o"), (TrialState.PRUNED, "#E69F00", "x")):
        part = [trial for trial in scored if trial.state is state]
        if part:
            x, y = [trial.number for trial in part], [trial.user_attrs["best"] for trial in part]
            axes.scatter(x, y, s=22, color=colour, marker=marker, label=state.name.lower(), zorder=3)
    done = [trial for trial in scored if trial.state is TrialState.COMPLETE]
    if done:
        best = [(max if maximise else min)(trial.value for trial in done[: i + 1]) for i in range(len(done))]
        ends = [trial.number for trial in done] + [max(trial.number for trial in scored)]
        axes.step(ends, [*best, best[-1]], where="post", color="#0072B2", linewidth=1, label="best so far")
    axes.set(xlabel="trial", ylabel=f"{metric}, best epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    if scored:
        axes.legend(fontsize=8, frameon=False)
    return figure


def importance_figure(shares: dict[str, float], metric: str) -> Figure:
    """A bar for each key, the most important on top."""
    figure = Figure(figsize=(6.4, 0.9 + 0.34 * len(shares)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shares)), list(shares.values()), color="#0072B2", height=0.65)
    axes.set_yticks(range(len(shares)), [shown(name) for name in short_keys(list(shares)).values()], fontsize=8)
    axes.invert_yaxis()
    axes.set(
        xlim=(0, 1.12 * max(shares.values(), default=1) or 1), xlabel=f"share of the variance of {metric} (fANOVA)"
    )
    for i, share in enumerate(shares.values()):
        axes.text(share, i, f" {share:.2f}", va="center", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_pictures(
    folder: Path, trials: list[FrozenTrial], shares: dict[str, float], metric: str, maximise: bool
) -> list[Path]:
    """history.png, and importance.png where there is something to weigh."""
    pictures = {"history.png": history(trials, metric, maximise)}
    if shares:
        pictures["importance.png"] = importance_figure(shares, metric)
    for name, figure in pictures.items():
        with written_whole(folder / name) as draft:
            figure.savefig(draft, dpi=150)
    return [folder / name for name in pictures]


def direction(maximise: bool) -> str:
    return (StudyDirection.MAXIMIZE if maximise else StudyDirection.MINIMIZE).name.lower()
