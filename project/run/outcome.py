"""The last words of a command: what came out, where it is, and what can be done with it."""

import math
from pathlib import Path

from project.run.checkpoints import BestAndLast
from project.run.paths import short_name

TITLES = {"acc": "accuracy", "acc_top5": "top-5 accuracy", "f1_macro": "macro F1", "loss": "loss"}


def fit_words(metrics: dict[str, float], saved: BestAndLast | None, run: Path, root: Path) -> str:
    """After fit: validation accuracy, the best checkpoint, the next commands."""
    best, last = (saved.best_path, saved.last_path) if saved else (None, None)
    lines = [""]
    if "val/acc" in metrics:
        lines.append(
            f"Validation accuracy {metrics['val/acc']:.2%} (epoch {metrics['epoch'] + 1:.0f}, {_chosen(saved)})"
        )
    elif "train/loss" in metrics:
        lines.append(f"Training loss {metrics['train/loss']:.4f}; there was no validation, so the last epoch counts")
    if not math.isfinite(metrics.get("train/loss", 0.0)):
        lines.append(
            "The training loss is not a finite number: lower model.lr, or look at the images and their labels."
        )
    if best or last:
        name = short_name(best or last)
        lines += [
            f"checkpoint  {best or last}",
            f"test        python -m project test --ckpt_path {name}",
            f"predict     python -m project predict --ckpt_path {name} --data.root FOLDER --out predictions.csv",
        ]
    return "\n".join([*lines, f"curves      tensorboard --logdir {root}"])


def _chosen(saved: BestAndLast | None) -> str:
    return f"the best by {saved.monitor}" if saved else "the last; no checkpoint was saved"


def test_words(test: dict[str, float], val: dict[str, float], class_names: list[str], checkpoint: Path | None) -> str:
    """After test or validate: validation beside test, and the classes that are hardest."""
    val = {name: value for name, value in val.items() if name.startswith("val/")}
    lines = [
        f"{checkpoint or ''}",
        f"{'':15s}" + "".join(f"{name:>12s}" for name, part in (("validation", val), ("test", test)) if part),
    ]
    for key, title in TITLES.items():
        cells = [part[f"{name}/{key}"] for name, part in (("val", val), ("test", test)) if f"{name}/{key}" in part]
        if cells:
            lines.append(f"{title:15s}" + "".join(f"{v:>12.4f}" if key == "loss" else f"{v:>12.2%}" for v in cells))
    name, part = ("test", test) if test else ("val", val)
    scores = {label: part[f"{name}/acc_class/{label}"] for label in class_names if f"{name}/acc_class/{label}" in part}
    hardest = sorted(scores, key=lambda label: scores[label])[:3]
    if hardest:
        lines.append("hardest        " + ", ".join(f"{label} {scores[label]:.2%}" for label in hardest))
    if test and val:
        lines.append(
            "Validation chose the epoch, so its figure is usually the optimistic one; test is the estimate to quote."
        )
    return "\n".join(lines)
