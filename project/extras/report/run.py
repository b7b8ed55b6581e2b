"""What a run has on record, read without its images: settings, split, results, curves."""

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scipy.stats import binomtest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.errors import UserError
from project.run.paths import CHECKPOINTS, latest_run, read, run_of
from project.settings import load_checkpoint


@dataclass
class Run:
    """The record of a run. What it lacks is empty."""

    folder: Path
    checkpoint: Path | None  # the one asked for, else best, else last
    config_text: str  # config.yaml
    record: dict[str, Any]  # run.json
    metrics: dict[str, float]  # metrics.json, and what the checkpoint was saved with
    finished: bool
    curves: dict[str, list[tuple[float, float]]]  # name -> (epoch from 1, value)
    groups: list[list[str]]  # groups.csv, the first row its head
    counts: dict[str, dict[str, int]]  # split -> class -> images

    @property
    def name(self) -> str:
        """Configuration and version: digits/version_3."""
        folder = self.folder.absolute()
        return f"{folder.parent.name}/{folder.name}"

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load(self.config_text)

    @property
    def fingerprint(self) -> str:
        """Of the split."""
        return self.record.get("split", {}).get("fingerprint", "unknown")

    @property
    def origin(self) -> dict[str, Any]:
        """Seed, commit, whether files differed from it (dirty), versions."""
        git = self.record.get("git") or {"commit": "unknown"}
        return {"seed": self.record.get("seed", "unknown"), **git, **self.record.get("versions", {})}

    def images(self, split: str) -> int:
        """Images of train, val or test that were used; fewer than the split has under limit_val_batches."""
        return int(self.metrics.get(f"{split}/images") or sum(self.counts.get(split, {}).values()))

    def score(self, name: str) -> float | None:
        """A metric, if it is on record and finite."""
        value = self.metrics.get(name, math.nan)
        return value if math.isfinite(value) else None

    def interval(self, split: str) -> tuple[float, float] | None:
        """The 95 % interval of an accuracy on record."""
        accuracy, images = self.score(f"{split}/acc"), self.images(split)
        return None if accuracy is None or not images else wilson(round(accuracy * images), images)


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927, "Probable inference", J. Am. Stat. Assoc. 22), in [0, 1].

    Args:
        correct: Images classified correctly.
        total: Images, 1 or more.
    """
    found = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def read_run(name: str) -> Run:
    """Read what is there; files that are missing leave their parts empty.

    Args:
        name: A word of `--run`: last, the folder of a run, or a checkpoint in one.

    Raises:
        UserError: when there is no such run.
    """
    path = latest_run(Path("runs")) if name == "last" else Path(name)
    folder = run_of(path) if path.is_file() else path
    if folder is None or not (folder / "config.yaml").is_file():
        inside = sorted(path.rglob("config.yaml"))
        example = inside[-1].parent if inside else "runs/digits/version_0"
        raise UserError(
            f"run: {name} is neither the folder of a run (with a config.yaml) nor a checkpoint in one; "
            f"give last, or a folder such as {example}"
        )
    saved = [path, folder / CHECKPOINTS / "best.ckpt", folder / CHECKPOINTS / "last.ckpt"]
    checkpoint = next((file for file in saved if file.is_file()), None)
    # metrics.json is of the last training that came to its end; one that was resumed and stopped has saved newer ones.
    recorded, record = read(folder / "metrics.json"), read(folder / "run.json")
    newer = {key: value for key, value in _saved_metrics(checkpoint).items() if not key.startswith("test/")}
    return Run(
        folder,
        checkpoint,
        (folder / "config.yaml").read_text(encoding="utf-8"),
        record,
        recorded | newer,
        record.get("finished", bool(recorded)),
        read_curves(folder),
        _rows(folder / "groups.csv"),
        _count(_rows(folder / "split.csv")),
    )


def read_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Scalars of TensorBoard's event files, by epoch; {} where there are none."""
    events = EventAccumulator(str(folder), {"scalars": 0, "images": 1, "histograms": 1, "tensors": 1})
    events.Reload()
    tags = events.Tags()["scalars"]
    epochs = {event.step: event.value + 1 for event in events.Scalars("epoch")} if "epoch" in tags else {}
    found = {}
    for tag in tags:
        last = {event.step: event.value for event in events.Scalars(tag) if event.step in epochs}  # resumed: the later
        found[tag] = sorted((epochs[step], value) for step, value in last.items())
    return {tag: points for tag, points in found.items() if points}


def _saved_metrics(checkpoint: Path | None) -> dict[str, float]:
    """The metrics with which a checkpoint was saved."""
    try:
        return load_checkpoint(checkpoint)["callbacks"]["BestAndLast"]["metrics"] if checkpoint else {}
    except (UserError, KeyError):
        return {}


def _rows(path: Path) -> list[list[str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def _count(rows: list[list[str]]) -> dict[str, dict[str, int]]:
    """Images of each class in each split, from split.csv."""
    counts = {"train": Counter(), "val": Counter(), "test": Counter()}
    for _, label, split, *_ in sorted(rows[1:], key=lambda row: row[1]):
        counts[split][label] += 1
    return {split: classes for split, classes in counts.items() if classes}
