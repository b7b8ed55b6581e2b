"""The folder of a run: configuration, split, versions, checkpoints, TensorBoard events and metrics.json in one place."""

import json
import math
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from project.data.split import save_split
from project.extras.search.report_trial import Trial
from project.run.checkpoints import BestAndLast
from project.run.outcome import fit_words, test_words
from project.run.paths import CHECKPOINTS, flatten, mark_latest, new_run, read, run_of

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy", "pillow")
FINAL = ("val/acc", "val/loss")  # of the best epoch, shown in TensorBoard's hparams tab as final/...


class RunFolder(L.Callback):
    """Makes runs/<name>/version_N when a fit starts, and records there what ran and what came out."""

    def __init__(
        self,
        root: str,
        name: str,
        config: str,
        tensorboard: bool,
        checkpoint: Path | None = None,
        validated: dict[str, float] | None = None,
        trial: Trial | None = None,
    ) -> None:
        """
        Args:
            root: Folder of all runs.
            name: Of the configuration.
            config: The full configuration, as YAML.
            tensorboard: Whether to write TensorBoard events into the run.
            checkpoint: The one that is loaded: a fit goes on in its run, a test adds its result there.
            validated: The metrics that the checkpoint was saved with.
            trial: Of a search, by whose values TensorBoard is to compare the runs.
        """
        self.trial, self.final = trial, FINAL if trial is None else tuple(dict.fromkeys((trial.metric, *FINAL)))
        self.root, self.name, self.config = Path(root), name, config
        self.checkpoint, self.tensorboard, self.validated = checkpoint, tensorboard, validated or {}
        self.run = run_of(checkpoint) if checkpoint else None
        if self.run is not None:
            self.root = self.run.parent.parent  # wherever the command was given

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:
            return
        if trainer.is_global_zero and self.run is None:
            self.run = new_run(self.root, self.name)
        self.run = trainer.strategy.broadcast(self.run)
        for callback in trainer.callbacks:
            if isinstance(callback, BestAndLast):
                callback.folder = self.run / CHECKPOINTS
        if trainer.is_global_zero:
            (self.run / CHECKPOINTS).mkdir(exist_ok=True)
        if self.tensorboard:
            trainer.logger = _EventsOnly(
                self.run.parent, name="", version=self.run.name, default_hp_metric=False, **self._purge(trainer)
            )

    def _purge(self, trainer: L.Trainer) -> dict[str, int]:
        """A resumed run repeats the steps after its checkpoint: TensorBoard is to forget what it saw of them."""
        return {"purge_step": trainer.resumed_step + 1} if trainer.resumed_step is not None else {}

    def _record(self, trainer: L.Trainer) -> dict[str, Any]:
        data = trainer.datamodule
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        known = read(self.run / "run.json")
        return known | {
            "commands": [*known.get("commands", []), {"time": now, "arguments": sys.argv[1:]}],
            "seed": data.seed,
            "split": {"fingerprint": data.fingerprint, **{name: len(rows) for name, rows in data.splits.items()}},
            "images_left_out": dict(data.bad),
            "finished": False,
            "versions": {"python": platform.python_version(), **_versions()},
            "git": _git(),
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put on record what runs; not before the checkpoint is restored, so that a failed attempt changes nothing."""
        if self.run is None or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        write(self.run / "config.yaml", self.config)
        data = trainer.datamodule
        save_split(self.run / "split.csv", data.source.samples, data.splits)
        write(self.run / "run.json", json.dumps(self._record(trainer), indent=2))
        flat = flatten(yaml.safe_load(self.config))
        for logger in trainer.loggers:
            if self.tensorboard and isinstance(logger, TensorBoardLogger):
                self._write_hparams(logger.experiment, flat)
            else:
                logger.log_hyperparams(flat)
            if bad := trainer.datamodule.bad:
                logger.log_metrics({"data/images_left_out": len(bad)}, step=trainer.global_step)

    def _write_hparams(self, writer: SummaryWriter, flat: dict[str, Any]) -> None:
        """Announce the hyperparameters and the names of the results; the results come later, as ordinary scalars.

        Of a trial only what is tried, and no test: TensorBoard's parallel coordinates leave out a run that lacks a result.
        """
        names = [f"final/{name}" for name in self.final]
        if self.trial is None:
            names += ["test/acc", "test/loss"]
        else:
            flat = self.trial.values
        for summary in hparams(flat, dict.fromkeys(names, 0.0)):
            writer.file_writer.add_summary(summary)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        if self.run is not None and trainer.is_global_zero:
            mark_latest(self.run, self.root)  # from now on it has what `best` and `last` can mean

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.run is None or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        metrics, _ = self._outcome(trainer)
        self._save_metrics(metrics | _evaluated(trainer, "val"))
        write(self.run / "run.json", json.dumps(read(self.run / "run.json") | {"finished": True}, indent=2))
        if self.tensorboard and trainer.logger is not None:
            final = {f"final/{name}": metrics[name] for name in self.final if name in metrics}
            trainer.logger.log_metrics(final, step=trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.run is not None and not trainer.fast_dev_run and trainer.is_global_zero:
            if trainer.resumed_step == trainer.global_step:
                print(
                    f"The checkpoint is at the end already ({trainer.current_epoch} epochs): --trainer.max_epochs makes it go on."
                )
            print(fit_words(*self._outcome(trainer), self.run, self.root), flush=True)

    def _outcome(self, trainer: L.Trainer) -> tuple[dict[str, float], BestAndLast | None]:
        """The metrics of the best epoch (of the last, without validation), and what saved the checkpoints."""
        saved = next((callback for callback in trainer.callbacks if isinstance(callback, BestAndLast)), None)
        if saved and saved.best_metrics:
            return saved.best_metrics, saved
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {"epoch": float(trainer.current_epoch - 1), **metrics}, saved

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        print(test_words(metrics, self.validated, pl_module.class_names, self.checkpoint), flush=True)
        if self.run is None or trainer.fast_dev_run:
            return
        if not trainer.datamodule.same_split:
            print(f"Not added to {self.run}: these are not the test images that its split set aside.")
            return
        epoch = {"test/epoch": self.validated["epoch"]} if self.validated else {}
        self._save_metrics(epoch | metrics | _evaluated(trainer, "test"))
        if any(self.run.glob("events.out.tfevents.*")):
            with SummaryWriter(self.run) as writer:
                for name, value in metrics.items():
                    writer.add_scalar(name, value, trainer.resumed_step)
        print(f"Added to {self.run / 'metrics.json'}.")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            print(test_words({}, metrics, pl_module.class_names, self.checkpoint), flush=True)

    def _save_metrics(self, metrics: dict[str, float]) -> None:
        """Merge into metrics.json. A new training makes an old test out of date."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        path = self.run / "metrics.json"
        known = {
            name: value for name, value in read(path).items() if "test/acc" in metrics or not name.startswith("test/")
        }
        write(path, json.dumps(known | finite, indent=2))


def _evaluated(trainer: L.Trainer, split: str) -> dict[str, float]:
    """How many images an evaluation saw, where it was limited to some batches."""
    limit = getattr(trainer, f"limit_{split}_batches")
    if limit in (None, 1.0) or split not in trainer.datamodule.loaded:
        return {}
    batches = getattr(trainer, f"num_{split}_batches")
    images = sum(batches) * trainer.datamodule.batch_size * trainer.world_size
    return {f"{split}/images": float(min(images, len(trainer.datamodule.loaded[split].index)))}


def write(path: Path, text: str) -> None:
    """Written whole and then renamed, so that a full disk or a kill leaves the old file."""
    draft = path.with_suffix(".part")
    draft.write_text(text.rstrip() + "\n")
    draft.replace(path)


class _EventsOnly(TensorBoardLogger):
    """Without Lightning's hparams.yaml, which would be an empty file beside our config.yaml."""

    def save(self) -> None:
        return


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a repository."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}
