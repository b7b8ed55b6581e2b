"""One run as a page for a colleague: the result first, then why to believe it (advice A15, A24, A25)."""

from project.cli import load_trained
from project.extras.look import figures
from project.extras.report.network import activations, filters
from project.extras.report.page import Missing, Picture, attempt, curves, picture, render
from project.extras.report.predictions import by_class, calibration, predict, worst_mistakes
from project.extras.report.run import Run


def run_page(run: Run, made: str) -> str:
    """The page of one run, HTML.

    Args:
        run: Its record.
        made: When the page was made; nothing else on it depends on that.
    """
    checkpoint = run.checkpoint or Missing("the run has no checkpoint")
    trained = attempt(load_trained, checkpoint)
    found = attempt(predict, trained, checkpoint)
    return render(
        "run.html.j2",
        run=run,
        made=made,
        found=found,
        loss=_curves(run, "loss", "train/loss", "val/loss"),
        accuracy=_curves(run, "accuracy", "train/acc", "val/acc"),
        learning_rates=_curves(run, "learning rate", *(name for name in run.curves if name.startswith("lr/"))),
        classes=attempt(by_class, found),
        mistakes=attempt(worst_mistakes, found),
        calibration=attempt(calibration, found),
        filters=attempt(filters, trained),
        activations=attempt(activations, found),
        counts=class_counts(run),
    )


def class_counts(run: Run) -> Picture | Missing:
    """Images of each class in each split."""
    if not run.counts:
        return Missing("the run has no split.csv")
    says = ", ".join(f"{split} {sum(classes.values()):,}" for split, classes in run.counts.items())
    return picture(figures.class_counts(run.counts), says)


def _curves(run: Run, ylabel: str, *names: str) -> Picture | Missing:
    return curves({name: run.curves[name] for name in names if name in run.curves}, ylabel)
