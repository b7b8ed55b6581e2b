"""The run that a command makes, resumes or adds to: one object, given to the callbacks that read or write it."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from project.files import written_whole
from project.run.paths import CHECKPOINTS, new_run, read, run_of


@dataclass
class Run:
    """Where a run is, and what it was started with."""

    root: Path  # folder of all runs
    name: str  # of the configuration
    config: str  # all settings, as YAML
    checkpoint: Path | None = None  # that is loaded: a fit resumes its run, a test adds its score there
    step: int | None = None  # optimizer steps at which it was saved
    metrics: dict[str, float] = field(default_factory=dict)  # with which it was saved

    def __post_init__(self) -> None:
        self.checkpoints: Path | None = None  # until a fit starts, and with fast_dev_run: nothing is saved
        self.writes = False  # a fit has started, and this is rank zero
        # None until a fit starts, and for a checkpoint of no run.
        self.folder = run_of(self.checkpoint) if self.checkpoint else None
        if self.folder is not None:
            self.root = self.folder.parent.parent  # from any working folder

    def start(self, trainer: L.Trainer) -> None:
        """Make the folder on rank zero, and tell the other ranks."""
        if trainer.is_global_zero:
            self.folder = self.folder or new_run(self.root, self.name)
            (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
        self.folder = trainer.strategy.broadcast(self.folder)
        self.checkpoints, self.writes = self.folder / CHECKPOINTS, trainer.is_global_zero

    def note(self, **entries: Any) -> None:
        """Add entries to run.json, or replace those of the same name."""
        if self.writes:
            self.write("run.json", json.dumps(read(self.folder / "run.json") | entries, indent=2))

    def add_metrics(self, metrics: dict[str, float]) -> None:
        """Merge into metrics.json. New training metrics remove the old test metrics."""
        tested = any(name.startswith("test/") for name in metrics)
        known = read(self.folder / "metrics.json").items()
        kept = {name: value for name, value in known if tested or not name.startswith("test/")}
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self.write("metrics.json", json.dumps(kept | finite, indent=2))

    def write(self, name: str, text: str) -> None:
        with written_whole(self.folder / name) as draft:
            draft.write_text(text.rstrip() + "\n", encoding="utf-8")
