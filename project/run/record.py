"""What a run leaves in its folder: configuration, split, versions, TensorBoard events and metrics.json."""

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
from torch.utils.tensorboard.summary import hparams as announce

from project.data.split import save_split
from project.run.checkpoints import BestAndLast
from project.run.outcome import fit_words, test_words
from project.run.paths import flatten
from project.run.run import Run

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "numpy", "pillow")


class RunRecord(L.Callback):
    """Starts the run's folder, and records there what ran and what came out."""

    def __init__(
        self,
        run: Run,
        tensorboard: bool,
        saved: BestAndLast | None = None,
        hparams: list[str] | None = None,
        scores: tuple[str, ...] = ("val/acc", "val/loss", "test/acc", "test/loss"),
    ) -> None:
        """
        Args:
            run: The run. The command line gives it.
            tensorboard: Whether to write TensorBoard events into it. The command line gives it.
            saved: What saves the checkpoints. The command line gives it.
            hparams: Keys by which TensorBoard's HPARAMS tab compares runs, such as model.lr; null takes all.
            scores: Metrics that it shows beside them: those of validation, of the best epoch, as final/...; its parallel
                coordinates leave out a run that lacks one.
        """
        self.run, self.tensorboard, self.saved = run, tensorboard, saved
        self.hparams, self.scores = hparams, scores

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:
            return
        self.run.start(trainer)
        if self.tensorboard:
            folder = self.run.folder
            # A resumed run repeats the steps after its checkpoint: TensorBoard is to forget what it saw of them.
            purge = {} if self.run.step is None else {"purge_step": self.run.step + 1}
            trainer.logger = _EventsOnly(folder.parent, name="", version=folder.name, default_hp_metric=False, **purge)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put on record what runs; not before the checkpoint is restored, so that a failed attempt changes nothing."""
        if not self.run.started or not trainer.is_global_zero:
            return
        data = trainer.datamodule
        self.run.write("config.yaml", self.run.config)
        save_split(self.run.folder / "split.csv", data.source.samples, data.splits)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.run.note(
            commands=[*self.run.notes().get("commands", []), {"time": now, "arguments": sys.argv[1:]}],
            seed=data.seed,
            split={"fingerprint": data.fingerprint, **{name: len(rows) for name, rows in data.splits.items()}},
            images_left_out=dict(data.bad),
            finished=False,
            versions={"python": platform.python_version(), **_versions()},
            git=_git(),
        )
        settings = flatten(yaml.safe_load(self.run.config))
        if self.hparams is not None:
            wanted = tuple(self.hparams), tuple(f"{key}." for key in self.hparams)
            settings = {k: value for k, value in settings.items() if k in wanted[0] or k.startswith(wanted[1])}
        for logger in trainer.loggers:
            if self.tensorboard and isinstance(logger, TensorBoardLogger):
                # The names of the results are announced; the results come later, as ordinary scalars.
                names = [f"final/{name}" if name.startswith("val/") else name for name in self.scores]
                for summary in announce(settings, dict.fromkeys(names, 0.0)):
                    logger.experiment.file_writer.add_summary(summary)
            else:
                logger.log_hyperparams(settings)
            if data.bad:
                logger.log_metrics({"data/images_left_out": len(data.bad)}, step=trainer.global_step)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.run.config
        if trainer.is_global_zero:
            self.run.mark_latest()  # from now on it has what `best` and `last` can mean

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.run.started or not trainer.is_global_zero:
            return
        metrics = self._outcome(trainer)
        self.run.add_metrics(metrics | _evaluated(trainer, "val"))
        self.run.note(finished=True)
        if self.tensorboard and trainer.logger is not None:
            final = {f"final/{name}": metrics[name] for name in self.scores if name in metrics}
            trainer.logger.log_metrics(final, step=trainer.global_step)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.run.started or not trainer.is_global_zero:
            return
        if self.run.step == trainer.global_step:
            epochs = trainer.current_epoch
            print(f"The checkpoint is already at the end ({epochs} epochs): a larger --trainer.max_epochs continues.")
        print(fit_words(self._outcome(trainer), self.saved, self.run.folder, self.run.root), flush=True)

    def _outcome(self, trainer: L.Trainer) -> dict[str, float]:
        """The metrics of the best epoch; of the last, without validation."""
        if self.saved and self.saved.best_metrics:
            return self.saved.best_metrics
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {"epoch": float(trainer.current_epoch - 1), **metrics}

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        run = self.run
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        print(test_words(metrics, run.metrics, pl_module.class_names, run.checkpoint), flush=True)
        if run.folder is None or trainer.fast_dev_run:
            return
        if not trainer.datamodule.same_split:
            print(f"Not added to {run.folder}: these are not the test images that its split set aside.")
            return
        epoch = {"test/epoch": run.metrics["epoch"]} if run.metrics else {}
        run.add_metrics(epoch | metrics | _evaluated(trainer, "test"))
        if any(run.folder.glob("events.out.tfevents.*")):
            with SummaryWriter(run.folder) as writer:
                for name, value in metrics.items():
                    writer.add_scalar(name, value, run.step)
        print(f"Added to {run.folder / 'metrics.json'}.")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            print(test_words({}, metrics, pl_module.class_names, self.run.checkpoint), flush=True)


def _evaluated(trainer: L.Trainer, split: str) -> dict[str, float]:
    """How many images an evaluation saw, where it was limited to some batches."""
    limit = getattr(trainer, f"limit_{split}_batches")
    if limit in (None, 1.0) or split not in trainer.datamodule.loaded:
        return {}
    batches = getattr(trainer, f"num_{split}_batches")
    images = sum(batches) * trainer.datamodule.batch_size * trainer.world_size
    return {f"{split}/images": float(min(images, len(trainer.datamodule.loaded[split].index)))}


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
