"""One run as a page for a colleague: the result up front, then why to believe it (advice A15, A24, A25; card C7)."""

import math
from dataclasses import dataclass

from project.classifier import ImageClassifier
from project.extras.look import figures
from project.extras.report.network import network
from project.extras.report.page import Section, cards, code, details, heading, missing, page, paragraph, picture, table
from project.extras.report.predictions import Predictions, confidence, results_by_class, worst_mistakes
from project.extras.report.run import Run


@dataclass(frozen=True)
class Trained:
    """The trained model and what it says of the validation images; where one is None, `why` says so."""

    model: ImageClassifier | None = None
    found: Predictions | None = None
    why: str = ""


def build_report(run: Run, trained: Trained, made: str) -> str:
    """The page of one run, HTML.

    Args:
        run: Its record.
        trained: Its model.
        made: When the page was made; nothing else on it depends on that.
    """
    names = trained.model.class_names if trained.model else next(({*counts} for counts in run.counts.values()), [])
    sections = [
        Section("training", "How the training went", training(run)),
        Section("classes", "Right and wrong by class", by_class(trained)),
        Section("mistakes", "The worst mistakes", _with_images(trained, "The worst mistakes", worst_mistakes)),
        Section(
            "confidence", "How far its confidence can be trusted", _with_images(trained, "Calibration", confidence)
        ),
        Section("network", "Inside the network", _inside(trained)),
        Section("data", "The data", data(run)),
        Section("record", "The record: how to get this again", record(run)),
    ]
    return page(
        f"Report of {run.name}", result(run, trained, len(names)), sections, f"Made {made} by python -m project report."
    )


def result(run: Run, trained: Trained, classes: int) -> list[str]:
    """The numbers first."""
    test, val, epoch = run.score("test/acc"), run.score("val/acc"), run.score("epoch")
    if test is not None:
        first = ("Test accuracy", f"{test:.2%}", f"95 % interval {run.interval('test')}; {run.images('test'):,} images")
    else:
        first = ("Test accuracy", "not tested yet", f"python -m project test --ckpt_path {run.checkpoint or 'best'}")
    if val is not None:
        second = (
            "Validation accuracy",
            f"{val:.2%}",
            f"95 % interval {run.interval('val')}; {run.images('val'):,} images",
        )
    elif trained.found is not None:
        now = float((trained.found.predicted == trained.found.labels).float().mean())
        second = ("Validation accuracy", f"{now:.2%}", "taken for this page: the run itself has none on record")
    else:
        second = ("Validation accuracy", "unknown", "none is on record, and the images are not to be had")
    source = run.config.get("data", {}).get("source")
    kind = source.get("class_path") if isinstance(source, dict) else source
    where = str(kind or "unknown").rsplit(".", 1)[-1]
    third = ("Data", where, f"{classes} classes; {run.images('train'):,} training images")
    best = run.checkpoint is not None and run.checkpoint.name == "best.ckpt"
    fourth = (
        "Best epoch" if best else "Epoch",
        f"{epoch + 1:.0f}" if epoch is not None else "unknown",
        f"of {_epochs(run)}",
    )
    body = [cards([first, second, third, fourth])]
    if test is not None:
        body.append(
            paragraph(f"Of 100 new images like the test images, about {100 * test:.0f} are classified rightly. ")
        )
        tested = run.score("test/epoch")
        if tested is not None and epoch is not None and tested != epoch:
            body.append(paragraph(f"The test was of epoch {tested + 1:.0f}, not of the best.", "warning"))
    if val is not None:
        body.append(
            paragraph(
                "The validation images chose the epoch, so their figure is usually the optimistic one; quote the test."
            )
        )
    body.append(
        paragraph(
            "Interval: Wilson's, by the number of images alone; another seed or split can differ by more.", "soft"
        )
    )
    if not run.finished:
        body.append(
            paragraph("This training has not finished: what follows is of what it has saved so far.", "warning")
        )
    if trained.found is not None and val is not None and "val/images" not in run.metrics:
        now = float((trained.found.predicted == trained.found.labels).float().mean())
        if abs(now - val) > 0.5 / max(1, len(trained.found.labels)):
            body.append(
                paragraph(
                    f"{run.checkpoint} now gives {now:.2%} on the validation images: it, or the machine, is another one.",
                    "warning",
                )
            )
    return body


def _epochs(run: Run) -> str:
    done = max((points[-1][0] for name, points in run.curves.items() if name.startswith("train/")), default=None)
    planned = run.config.get("trainer", {}).get("max_epochs")
    if done is None:
        return f"{planned or 'an unknown number of'} epochs planned"
    return f"{done:.0f} epochs trained" + (f", {planned} planned" if planned and planned != done else "")


def training(run: Run) -> list[str]:
    """Curves, what they say, rates."""
    found = run.record.get("learning_curve")
    body = []
    if isinstance(found, dict) and found.get("shape"):
        advice = f" Advice: {found['advice']}." if found.get("advice") else ""
        body.append(
            paragraph(f"The fall of the training loss looks {found['shape']}: {found.get('evidence', '')}.{advice}")
        )
    else:
        body.append(missing("The diagnosis of the learning curve", "it is made at the end of a training"))
    body += [paragraph(f"Advice at the start: {line}", "soft") for line in run.record.get("advice") or []]
    if not run.curves:
        body.append(missing("Curves", "the run has no readable TensorBoard event file"))
    for title, key, words in (
        (
            "Loss",
            "loss",
            "What the training makes small. If validation turns upward while training falls on, the model learns by heart.",
        ),
        (
            "Accuracy",
            "acc",
            "The share of images classified rightly. Augmented training images are harder, so theirs can lie below.",
        ),
    ):
        series = {name: run.curves[name] for name in (f"train/{key}", f"val/{key}") if name in run.curves}
        if series:
            body += [heading(title), paragraph(words)]
            body.append(
                picture(
                    lambda series=series, title=title: figures.curves(series, "epoch", title.lower()),
                    title,
                    curve_words(series),
                )
            )
    rates = {name: points for name, points in run.curves.items() if name.startswith("lr/")}
    if rates or run.groups:
        body += [heading("Learning rates"), paragraph("How large the steps were, for each group of parameters.")]
    if rates:
        body.append(
            picture(lambda: figures.curves(rates, "epoch", "learning rate"), "Learning rates", curve_words(rates))
        )
    if run.groups:
        body.append(
            table("Groups of parameters", list(run.groups[0]), [[str(v) for v in row.values()] for row in run.groups])
        )
    return body


def curve_words(series: dict[str, list[tuple[float, float]]]) -> str:
    """Where each curve begins and ends: "val/loss from 1.2 to 0.56"."""
    return "; ".join(
        f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}"
        if math.isfinite(points[-1][1])
        else f"{name} ends not finite"
        for name, points in list(series.items())[:6]
    )


def _why(trained: Trained) -> str:
    return trained.why or "there is no trained model"


def by_class(trained: Trained) -> list[str]:
    """The validation images by class."""
    if trained.model is None or trained.found is None:
        return [missing("Confusion matrix, table of classes, precision and recall", _why(trained))]
    return results_by_class(trained.found, trained.model.class_names)


def _with_images(trained: Trained, what: str, make: object) -> list[str]:
    if trained.model is None or trained.found is None:
        return [missing(what, _why(trained))]
    return guarded(what, lambda: make(trained.model, trained.found))


def _inside(trained: Trained) -> list[str]:
    if trained.model is None:
        return [missing("Filters and activations", _why(trained))]
    return guarded("Filters and activations", lambda: network(trained.model, trained.found, _why(trained)))


def guarded(what: str, make: object) -> list[str]:
    """A chapter, or why there is none: a network may do what nobody thought of, and the rest of the page is worth more."""
    try:
        return make()
    except Exception as error:
        return [missing(what, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")]


def data(run: Run) -> list[str]:
    """Class histogram by split, what was left out."""
    body = []
    if run.counts:
        total = {name: sum(part.values()) for name, part in run.counts.items()}
        sizes = [count for part in list(run.counts.values())[:1] for count in part.values()]
        says = ", ".join(f"{name} {count:,}" for name, count in total.items())
        says += f"; {min(sizes):,} to {max(sizes):,} images a class in the first"
        body.append(paragraph("How many images of each class the model learnt from, was chosen by and is tested on."))
        body.append(picture(lambda: figures.class_counts(run.counts), "Images by class and split", says))
    else:
        body.append(missing("Images by class", "the run has no readable split.csv"))
    split = run.record.get("split", {})
    if split:
        body.append(
            paragraph(f"Fingerprint of the split: {split.get('fingerprint')}. Scores compare where it is the same.")
        )
    left_out = run.record.get("images_left_out") or {}
    if left_out:
        rows = [[key, why] for key, why in list(left_out.items())[:20]]
        body.append(
            table(f"{len(left_out)} unreadable images were left out; the first {len(rows)}", ["image", "why"], rows, 2)
        )
    return body


def record(run: Run) -> list[str]:
    """Commands, seed, versions, commit, the whole configuration."""
    known = run.record
    body = [paragraph(f"Folder: {run.folder}. Checkpoint: {run.checkpoint or 'none'}.")]
    commands = [entry for entry in known.get("commands", []) if isinstance(entry, dict)]
    if commands:
        lines = [
            f"{entry.get('time', '')}  python -m project {' '.join(map(str, entry.get('arguments', [])))}"
            for entry in commands
        ]
        body += [heading("Commands of its training"), code("\n".join(lines), "Commands")]
    rows = [["seed", str(known.get("seed", "unknown"))], ["commit", commit_words(known)]]
    rows += [[name, str(number)] for name, number in known.get("versions", {}).items()]
    body += [heading("Seed, commit, versions"), table("What it was made with", ["what", "which"], rows, 2)]
    body += [heading("Configuration"), details("Every setting, as YAML", code(run.config_text, "Configuration"))]
    return body


def commit_words(known: dict) -> str:
    """The commit, and whether files differed from it."""
    git = known.get("git")
    if not isinstance(git, dict):
        return "unknown (not in a git repository)"
    return f"{git.get('commit')}" + (", with changes that were not committed" if git.get("dirty") else "")
