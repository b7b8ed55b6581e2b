"""What a run leaves in its folder: configuration, split, versions, TensorBoard events and metrics.json."""

import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams as announce

from project.data.module import EVALUATION
from project.data.split import save_split
from project.messages import say
from project.run.checkpoints import BestAndLast, logged
from project.run.paths import flatten, mark_latest, read
from project.run.run import Run
from project.run.terminal import fit_words, score_table

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
            run: The run. The command line sets it, `tensorboard` (whether to write events) and `saved`.
            hparams: Keys to compare in TensorBoard's HPARAMS tab, such as model.lr; null: all.
            scores: Metrics in that tab; those of validation are named final/..., and are of the best epoch. A run that
                lacks one is missing in its parallel coordinates.
        """
        self.run, self.tensorboard, self.saved = run, tensorboard, saved
        self.hparams = hparams
        self.tags = {name: f"final/{name}" if name.startswith("val/") else name for name in scores}

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:
            return
        self.run.start(trainer)
        if self.tensorboard:
            # A resumed run repeats the steps after its checkpoint: TensorBoard shall forget what it has of them.
            purge = None if self.run.step is None else self.run.step + 1
            trainer.logger = _EventsOnly(self.run.folder, "", "", default_hp_metric=False, purge_step=purge)

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Record what runs; not before the checkpoint is restored, so that a failed attempt changes nothing."""
        if not self.run.writes:
            return
        data = trainer.datamodule
        self.run.write("config.yaml", self.run.config)
        save_split(self.run.folder / "split.csv", data.source.samples, data.splits)
        command = {"time": datetime.now().astimezone().isoformat(timespec="seconds"), "arguments": sys.argv[1:]}
        self.run.note(
            commands=[*read(self.run.folder / "run.json").get("commands", []), command],
            seed=data.seed,
            threads=torch.get_num_threads(),
            split={"fingerprint": data.fingerprint, **{name: len(rows) for name, rows in data.splits.items()}},
            images_left_out=dict(data.bad),
            left_out=data.unused,
            finished=False,
            versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            git=_git(),
        )
        settings = flatten(yaml.safe_load(self.run.config))
        if self.hparams is not None:
            below = tuple(f"{key}." for key in self.hparams)
            settings = {key: value for key, value in settings.items() if f"{key}.".startswith(below)}
        if self.tensorboard:  # the names of the scores come first, their values later as ordinary scalars
            for summary in announce(settings, dict.fromkeys(self.tags.values(), 0.0)):
                trainer.logger.experiment.file_writer.add_summary(summary)
        for logger in trainer.loggers:
            if not self.tensorboard:
                logger.log_hyperparams(settings)
            if data.bad:
                logger.log_metrics({"data/images_left_out": len(data.bad)}, step=trainer.global_step)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.run.config
        if self.run.writes:
            mark_latest(self.run.folder)  # from now on it has a `best` or `last`

    def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not self.run.writes:
            return
        metrics = self.saved.best_metrics or self.saved.metrics  # without validation, those of the last epoch
        self.run.add_metrics(metrics | _evaluated(trainer, "val"))
        self.run.note(finished=True)
        if self.tensorboard:
            final = {tag: metrics[name] for name, tag in self.tags.items() if name in metrics}
            trainer.logger.log_metrics(final, step=trainer.global_step)
        if self.run.step == trainer.global_step:
            say("The checkpoint is already at the end: a larger --trainer.max_epochs continues it.")
        say(fit_words(metrics, self.saved, self.run.root))

    def on_test_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        run, metrics, where = self.run, logged(trainer), ""
        if run.folder is not None and not trainer.fast_dev_run:
            where = f"Not added to {run.folder}: these are not its test images."
            if trainer.datamodule.same_split:
                where = f"Added to {run.folder / 'metrics.json'}."
                epoch = {"test/epoch": run.metrics["epoch"]} if run.metrics else {}
                run.add_metrics(epoch | metrics | _evaluated(trainer, "test"))
                if any(run.folder.glob("events.out.tfevents.*")):
                    events = _EventsOnly(run.folder, "", "")
                    events.log_metrics(metrics, run.step)
                    events.finalize("success")
        print(score_table(run.metrics | metrics, run.checkpoint), where, sep="\n", flush=True)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == "validate":
            say(score_table(logged(trainer), self.run.checkpoint))


def _evaluated(trainer: L.Trainer, split: str) -> dict[str, float]:
    """How many images an evaluation saw, where it was limited to some batches."""
    data = trainer.datamodule
    if getattr(trainer, f"limit_{split}_batches") in (None, 1.0) or split not in data.loaded:
        return {}
    images = sum(getattr(trainer, f"num_{split}_batches")) * data.batch_size * EVALUATION * trainer.world_size
    return {f"{split}/images": float(min(images, len(data.loaded[split].index)))}


class _EventsOnly(TensorBoardLogger):
    """Without Lightning's hparams.yaml, which would be an empty file beside our config.yaml."""

    def save(self) -> None:
        return


def _git() -> dict[str, Any] | None:
    """Commit, and whether files differ from it; None outside a repository or without git."""
    command = ["git", "status", "--porcelain=v2", "--branch"]
    try:
        said = subprocess.check_output(command, cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    lines = said.splitlines()  # "# branch.oid COMMIT", other "# ..." lines, then one for each file
    return {"commit": lines[0].split()[-1], "dirty": not lines[-1].startswith("#")}
