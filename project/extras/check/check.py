"""`python -m project check`: images, labels, model and plan are checked before the training (advice A7 to A13, A15).

It gets the parsed configuration, not built objects, because what cannot be built is what it reports. Then the real
training starts, without a run folder. `Probe` examines it before its first step, times some steps, and ends it.
"""

import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from project.classifier import Batch, ImageClassifier
from project.cli import build
from project.data import ImageDataModule
from project.errors import UserError
from project.extras.check.augmentations import check_augmentations
from project.extras.check.findings import Findings
from project.extras.check.images import check_classes, check_files, stand_in
from project.extras.check.network import check_network
from project.optim.plan import draw_plan
from project.run.machine import Machine, Trainer, choose, work_of
from project.run.plan import advice_for, check_callbacks, epochs_for, make_plan
from project.run.terminal import data_lines, optimizer_lines
from project.settings import LINKS

OURS = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "fast_dev_run": False,
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
}
WARM, TIMED = 2, 20  # steps
SECONDS = 6.0  # of timing, at most


class Measured(Exception):
    """Everything is known, and the training is to end."""


@dataclass(eq=False)
class Probe(L.Callback):
    """Before the first step: the network's start and the plan. Then a few timed steps; then it raises Measured.

    Args:
        found: Takes lines and pictures.
        steps: To overfit one batch in.
        compare: Compare the initialisations.
    """

    found: Findings
    steps: int
    compare: bool

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: ImageClassifier, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx:
            return
        check_network(pl_module, batch, self.steps, self.compare, self.found)
        print("\n".join(optimizer_lines(trainer, pl_module)))
        if plan := make_plan(pl_module):  # the run has a known end
            self.found.picture("rates.png", "the planned learning rates", draw_plan(plan))
            rules = [(True, "warning", line, "") for line in advice_for(trainer, pl_module, plan)]
            self.found.judge("advice", "batch size, learning rate and schedule are in the usual ranges", *rules)
        self._since, self._before = time.perf_counter(), 0  # when timing began, after how many steps

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: ImageClassifier, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        cuda = pl_module.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
        now, done = time.perf_counter(), batch_idx + 1
        if done in (WARM + TIMED, trainer.num_training_batches) or now - self._since > SECONDS:
            step, epochs = (now - self._since) / (done - self._before), pl_module.length().epochs
            words = f"{1000 * step:.0f} ms a batch on {pl_module.device.type}"
            if epochs:  # else the run has no known end
                count = trainer.num_training_batches * epochs
                words = f"{timedelta(seconds=round(count * step))} for {count:,} batches, without validation; {words}"
            self.found.add("ok", "time", words)
            if cuda:
                self.found.add("ok", "memory", f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB of the GPU at most")
            raise Measured
        if done <= WARM:
            self._since, self._before = now, done


def run(config: dict[str, Any], folder: Path, images: int, steps: int, compare_init: bool) -> int:
    """Check everything; see project.extras.check.command.check."""
    found = Findings(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if config["seed_everything"] is not False:
            L.seed_everything(config["seed_everything"], verbose=False)
        data = build(ImageDataModule, config["data"])
        linked = {name: getattr(data, source) for name, source in LINKS.items()}
        model = build(ImageClassifier, {**config["model"], **linked})
        print(data_lines(data))
        splits, every = data.splits, -(-len(data.source.samples) // images)
        if every > 1:
            print(f"Checking one image in {every}; --images {len(data.source.samples)} checks all.")
            data.splits = {name: rows[::every] for name, rows in splits.items()}
        check_files(data, found)
        check_augmentations(data, found)
        stand_in(data, splits)
        check_classes(data, model.task.weighted, found)
        settings = build(Trainer, config["trainer"])
        callbacks = settings["callbacks"] or []
        check_callbacks(callbacks if isinstance(callbacks, list) else [callbacks])
        work = work_of(model, data.batch_size)
        settings["precision"], why = choose(settings, work)
        settings["max_epochs"], length = epochs_for(settings, len(splits["train"]), data.batch_size)
        if length:
            print(length)
        machine = Machine(work, why, **config["machine"])
        settings = {**settings, **OURS, "callbacks": [machine, Probe(found, steps, compare_init)]}
        L.Trainer(**settings).fit(model, datamodule=data)
        found.add("error", "training", "no step is trained: trainer.max_epochs, max_steps or limit_train_batches is 0")
    except Measured:
        pass
    except (UserError, MisconfigurationException) as error:
        found.add("error", "settings", str(error))
    except Exception as error:  # of a network, an augmentation or an optimizer of the user's
        if os.environ.get("PROJECT_TRACEBACK"):
            raise
        found.add("error", "training", f"{type(error).__name__}: {error}", "PROJECT_TRACEBACK=1 shows where it fails")
    errors, warnings = found.levels.count("error"), found.levels.count("warning")
    print(f"\n{errors} errors, {warnings} warnings: {'fix the errors, and check again' if errors else 'ready to fit'}")
    return int(errors > 0)
