"""The run that a command makes, resumes or adds to: one object, handed to the callbacks that read or write it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from project.files import written_whole
from project.run.paths import CHECKPOINTS, mark_latest, new_run, read, run_of


@dataclass
class Run:
    """Where a run is, and what it was given.

    Args:
        root: Folder of all runs.
        name: Of the configuration.
        config: The full configuration, as YAML.
        checkpoint: The one that is loaded: a fit resumes its run, a test adds its result there.
        step: Optimizer steps that it has behind it.
        metrics: That it was saved with.
    """

    root: Path
    name: str
    config: str
    checkpoint: Path | None = None
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    folder: Path | None = field(default=None, init=False)  # None until a fit starts, and for a checkpoint of no run
    started: bool = field(default=False, init=False)  # by a fit, but not with fast_dev_run

    def __post_init__(self) -> None:
        if self.checkpoint is not None:
            self.folder = run_of(self.checkpoint)
        if self.folder is not None:
            self.root = self.folder.parent.parent  # wherever the command was given

    def start(self, trainer: L.Trainer) -> None:
        """Make the folder, on rank zero, and tell the other ranks."""
        if trainer.is_global_zero:
            self.folder = self.folder or new_run(self.root, self.name)
            (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
        self.folder = trainer.strategy.broadcast(self.folder)
        self.started = True

    @property
    def checkpoints(self) -> Path | None:
        """Where to save; None saves nothing."""
        return self.folder / CHECKPOINTS if self.started else None

    def mark_latest(self) -> None:
        """Make `best` and `last` mean this run's."""
        if self.started:
            mark_latest(self.folder, self.root)

    def note(self, **entries: Any) -> None:
        """Put entries on record in run.json, over those of the same name."""
        if self.started:
            self.write("run.json", json.dumps(self.notes() | entries, indent=2))

    def notes(self) -> dict[str, Any]:
        return read(self.folder / "run.json") if self.folder else {}

    def add_metrics(self, metrics: dict[str, float]) -> None:
        """Merge into metrics.json. A new training makes an old test out of date."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        tested = any(name.startswith("test/") for name in metrics)
        known = read(self.folder / "metrics.json").items()
        kept = {name: value for name, value in known if tested or not name.startswith("test/")}
        self.write("metrics.json", json.dumps(kept | finite, indent=2))

    def write(self, name: str, text: str) -> None:
        with written_whole(self.folder / name) as draft:
            draft.write_text(text.rstrip() + "\n", encoding="utf-8")
