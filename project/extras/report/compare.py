"""Several runs on one page: results side by side, curves over each other, what differs in their settings."""

from functools import partial
from typing import Any

from project.extras.look import figures
from project.extras.report.page import Section, missing, page, paragraph, picture, table
from project.extras.report.report import commit_words, curve_words
from project.extras.report.run import Run
from project.run.paths import flatten

CURVES = {
    "val/acc": "Validation accuracy",
    "val/loss": "Validation loss",
    "train/loss": "Training loss",
    "train/acc": "Training accuracy",
}


def build_comparison(runs: list[Run], made: str) -> str:
    """The page of two runs or more, from their records alone; HTML. `made`: when."""
    names = labels(runs)
    fingerprints = {
        name: str(run.record.get("split", {}).get("fingerprint", "unknown"))
        for name, run in zip(names, runs, strict=True)
    }
    lead = results(runs, names)
    if len(set(fingerprints.values())) > 1:
        listed = "; ".join(f"{name} {value}" for name, value in fingerprints.items())
        lead.append(
            paragraph(
                f"The splits differ, so the scores are of different images and do not compare: {listed}.", "warning"
            )
        )
    else:
        lead.append(
            paragraph(f"All were scored on one split ({next(iter(fingerprints.values()))}), so their scores compare.")
        )
    lead.append(
        paragraph(
            "Interval: Wilson's 95 %, by the number of images alone. Where two overlap, more seeds decide.", "soft"
        )
    )
    sections = [
        Section("curves", "Curves", curves(runs, names)),
        Section(
            "settings",
            "What differs in the settings",
            differences("Settings", [flatten(run.config) for run in runs], names),
        ),
        Section(
            "versions",
            "Seeds, commits, versions",
            differences("Seeds, commits and versions", [_origin(run) for run in runs], names),
        ),
    ]
    return page(f"{len(runs)} runs compared", lead, sections, f"Made {made} by python -m project report.")


def labels(runs: list[Run]) -> list[str]:
    """Short names; whole paths where those would be the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def results(runs: list[Run], names: list[str]) -> list[str]:
    """One row for each run, the best by validation named."""
    rows = []
    for name, run in zip(names, runs, strict=True):
        epoch = run.score("epoch")
        row = [name if run.finished else f"{name} (not finished)"]
        for split in ("val", "test"):
            row += [_share(run.score(f"{split}/acc")), run.interval(split)]
        loss = run.score("val/loss")
        rows.append(
            [
                *row,
                f"{loss:.4f}" if loss is not None else "",
                f"{epoch + 1:.0f}" if epoch is not None else "",
                f"{run.images('train'):,}",
            ]
        )
    head = ["run", "validation", "95 % interval", "test", "95 % interval", "val loss", "best epoch", "training images"]
    scored = [
        (run.score("val/acc"), name) for name, run in zip(names, runs, strict=True) if run.score("val/acc") is not None
    ]
    best = [paragraph(f"Highest validation accuracy: {max(scored)[1]}, {max(scored)[0]:.2%}.")] if scored else []
    untested = [name for name, run in zip(names, runs, strict=True) if run.score("test/acc") is None]
    note = [paragraph(f"Not tested yet: {', '.join(untested)}.", "soft")] if untested else []
    return [*best, table("Results", head, rows), *note]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def curves(runs: list[Run], names: list[str]) -> list[str]:
    """Each kind of curve, of all runs."""
    body = []
    for tag, title in CURVES.items():
        series = {name: run.curves[tag] for name, run in zip(names, runs, strict=True) if tag in run.curves}
        if series:
            body.append(picture(partial(figures.curves, series, "epoch", title.lower()), title, curve_words(series)))
    without = [name for name, run in zip(names, runs, strict=True) if not run.curves]
    if without:
        body.append(missing(f"The curves of {', '.join(without)}", "no readable TensorBoard event file"))
    return body


def differences(what: str, all_values: list[dict[str, Any]], names: list[str]) -> list[str]:
    """A table of the keys whose values are not the same in all runs."""
    keys = list(dict.fromkeys(key for values in all_values for key in values))
    different = [key for key in keys if len({repr(values.get(key)) for values in all_values}) > 1]
    if not different:
        return [paragraph(f"{what}: the same in all {len(names)} runs.")]
    rows = [
        [key, *("not set" if values.get(key) is None else str(values[key]) for values in all_values)]
        for key in different
    ]
    same = len(keys) - len(different)
    return [table(f"{what} that differ; {same} more are the same", ["key", *names], rows, len(names) + 1)]


def _origin(run: Run) -> dict[str, Any]:
    return {"seed": run.record.get("seed"), "commit": commit_words(run.record), **run.record.get("versions", {})}
