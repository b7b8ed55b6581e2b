"""What a run has on record, read without its images: settings, split, results, curves."""

import csv
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.errors import UserError
from project.run.paths import CHECKPOINTS, latest_run, read, run_of
from project.settings import load_checkpoint

Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


@dataclass
class Run:
    """The record of a run. What it lacks is empty."""

    folder: Path
    checkpoint: Path | None  # best, else last
    config_text: str
    record: dict[str, Any]  # run.json
    metrics: dict[str, float]  # metrics.json; of a training that has not finished, the checkpoint's
    finished: bool = True
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # name -> (epoch from 1, value)
    groups: list[dict[str, str]] = field(default_factory=list)  # groups.csv
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # split -> class -> images

    @property
    def name(self) -> str:
        """Configuration and version: digits/version_3."""
        folder = self.folder.absolute()
        return f"{folder.parent.name}/{folder.name}"

    @property
    def config(self) -> dict[str, Any]:
        try:
            config = yaml.safe_load(self.config_text)
        except yaml.YAMLError:
            return {}
        return config if isinstance(config, dict) else {}

    def images(self, split: str) -> int:
        """Images of train, val or test."""
        number = self.metrics.get(f"{split}/images") or self.record.get("split", {}).get(split)
        number = int(number) if isinstance(number, float) else number
        return number if isinstance(number, int) else sum(self.counts.get(split, {}).values())

    def score(self, name: str) -> float | None:
        """A finite value of metrics.json."""
        value = self.metrics.get(name)
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

    def interval(self, split: str) -> str:
        """The 95 % interval of an accuracy on record, in words."""
        accuracy, images = self.score(f"{split}/acc"), self.images(split)
        if accuracy is None or not images:
            return ""
        low, high = wilson(round(accuracy * images), images)
        return f"{low:.1%} to {high:.1%}"


def find_run(name: str, root: Path = Path("runs")) -> tuple[Path, Path | None]:
    """The run that a word of `--run` means, and the checkpoint if it names one.

    Raises:
        UserError: when there is none.
    """
    if name == "last":
        try:
            return latest_run(root), None
        except UserError:  # no training has saved a checkpoint: the newest folder, then
            folders = [path.parent for path in root.glob("*/version_*/config.yaml")]
            if not folders:
                raise
            return max(folders, key=lambda folder: folder.stat().st_mtime), None
    path = Path(name).expanduser()
    if path.is_file():
        run = run_of(path)
        if run is None:
            raise UserError(
                f"run: {path} does not lie in the checkpoints of a run; give the folder of a run or a checkpoint in it"
            )
        return run, path
    if not path.is_dir():
        raise UserError(
            f"run: there is no {path}; give last, the folder of a run such as runs/digits/version_0, or a checkpoint in one"
        )
    if not (path / "config.yaml").is_file():
        inner = sorted(found.parent for found in path.rglob("config.yaml") if found.parent != path)
        hint = f"; did you mean {inner[-1]}?" if inner else "; give the folder of a run, such as runs/digits/version_0"
        raise UserError(f"run: {path} is not the folder of a run, it has no config.yaml{hint}")
    return path, None


def read_run(folder: Path, checkpoint: Path | None = None) -> Run:
    """Read what is there; files that are missing or damaged leave their parts empty."""
    saved = [folder / CHECKPOINTS / f"{name}.ckpt" for name in ("best", "last")]
    checkpoint = checkpoint or next((path for path in saved if path.is_file()), None)
    recorded, record = _dictionary(folder / "metrics.json"), _dictionary(folder / "run.json")
    # The checkpoint's own figures count: metrics.json is of the last training that came to its end.
    metrics = recorded | {
        name: value for name, value in _saved_metrics(checkpoint).items() if not name.startswith("test/")
    }
    return Run(
        folder,
        checkpoint,
        (folder / "config.yaml").read_text(errors="replace"),
        record,
        metrics,
        bool(record.get("finished", recorded)),
        read_curves(folder),
        _rows(folder / "groups.csv"),
        _count(folder / "split.csv"),
    )


def read_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Scalars of TensorBoard's event files, by epoch; {} where there are none."""
    events = EventAccumulator(
        str(folder), {"scalars": 0, "images": 1, "histograms": 1, "compressedHistograms": 1, "tensors": 1}
    )
    try:
        events.Reload()
    except Exception:  # of whatever kind a damaged file has
        return {}
    tags = events.Tags()["scalars"]
    epochs = {event.step: event.value + 1 for event in events.Scalars("epoch")} if "epoch" in tags else {}
    found = {}
    for tag in tags:
        last = {
            event.step: event.value for event in events.Scalars(tag) if event.step in epochs
        }  # of a step twice, the later
        found[tag] = sorted((epochs[step], value) for step, value in last.items())
    return {tag: points for tag, points in found.items() if points}


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, "Probable inference", J. Am. Stat. Assoc. 22); within [0, 1] at 0 and 100 % too.

    Args:
        right: Images classified rightly.
        total: Images, 1 or more.
    """
    share, squared = right / total, Z * Z
    middle = share + squared / (2 * total)
    reach = Z * math.sqrt(share * (1 - share) / total + squared / (4 * total * total))
    low, high = ((middle + sign * reach) / (1 + squared / total) for sign in (-1, 1))
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding can put an end beyond the share itself


def _saved_metrics(checkpoint: Path | None) -> dict[str, float]:
    """The metrics with which a checkpoint was saved."""
    try:
        return dict(load_checkpoint(checkpoint)["callbacks"]["BestAndLast"]["metrics"]) if checkpoint else {}
    except (UserError, KeyError, TypeError):
        return {}


def _dictionary(path: Path) -> dict[str, Any]:
    found = read(path)
    return found if isinstance(found, dict) else {}


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []


def _count(path: Path) -> dict[str, dict[str, int]]:
    """Images of each class in each split."""
    counts: dict[str, Counter[str]] = {}
    for row in _rows(path):
        if row.get("split") and row.get("label") is not None:
            counts.setdefault(row["split"], Counter())[row["label"]] += 1
    order = ("train", "val", "test")
    names = sorted({label for part in counts.values() for label in part})
    return {split: {name: counts[split][name] for name in names} for split in order if split in counts}
