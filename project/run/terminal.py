"""What is printed: a table at the start, a line for each epoch, and at the end the scores and the next commands."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from project.data.sources import counted, some
from project.messages import say
from project.run.checkpoints import BestAndLast, logged_now
from project.run.paths import short_name
from project.run.plan import groups_of

TITLES = {"acc": "accuracy", "acc_top5": "top-5 accuracy", "f1_macro": "macro F1", "loss": "loss"}


class TerminalBar(TQDMProgressBar):
    """Lightning's bar, on a terminal only: in a log file it would be thousands of lines."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10 if sys.stdout.isatty() else 0)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}")  # counted as everywhere else

    def get_metrics(self, *_: Any) -> dict[str, Any]:
        return {}  # the epoch's line has them


class EpochLine(L.Callback):
    """Prints one line after every epoch: losses, accuracy, learning rates (advice A17), time.

    A validation within an epoch has a line of its own, without the rest.
    """

    def __init__(self) -> None:
        self._epoch, self._start = 0, 0.0  # counted from 1; 0 before the first
        self._validated = -1  # optimizer steps of the weights that were validated last

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer)  # Lightning does not start it again

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.on_train_end(trainer)  # of the epoch before: its metrics are complete only after its last hook
        self._epoch, self._start = trainer.current_epoch + 1, time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._validated = trainer.global_step
        if not trainer.fit_loop.epoch_loop.done:
            self._write(trainer, True)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._write(trainer, False, self._validated == trainer.global_step)

    def _write(self, trainer: L.Trainer, *validated: bool) -> None:
        """See `logged_now`."""
        if not self._epoch or not trainer.is_global_zero:
            return
        metrics = logged_now(trainer, *validated)
        shown = ("train/loss", "val/loss", "val/acc")
        scores = "".join(f"  {name} {metrics[name]:.4f}" for name in shown if name in metrics)
        rates = rate_words({name: rate for name, rate in metrics.items() if name.startswith("lr/")})
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
        seconds = time.monotonic() - self._start
        Tqdm.write(f"epoch {self._epoch}{of}{scores}  {rates}  {seconds:.1f} s")  # above the bar, if there is one
        sys.stdout.flush()


class StartTable(L.Callback):
    """Prints, before the first epoch, what is going to be trained on what, and how."""

    def __init__(self, length: str = "") -> None:
        """
        Args:
            length: A line on the number of epochs, or nothing.
        """
        self.length = length

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        say("\n".join([*describe(trainer, pl_module), *([self.length] if self.length else [])]))

    def on_predict_start(self, trainer: L.Trainer, *_: Any) -> None:
        say(data_lines(trainer.datamodule))


def rate_words(rates: dict[str, float]) -> str:
    """The learning rates in force, lr/<group> -> value; of many groups the lowest and the highest."""
    words = {name: f"{name} {rate:.3g}" for name, rate in rates.items()}
    if len(words) <= 4:
        return "  ".join(words.values())
    return f"{words[min(rates, key=rates.get)]} to {words[max(rates, key=rates.get)]}"


def data_lines(data: L.LightningDataModule) -> str:
    """What the data were taken for: layout, classes in order, images of each split; and what is left out."""
    where = data.source.layout or f"{type(data.source).__name__}{f' {data.root}' if data.root else ''}"
    return (
        f"data       {where}: {len(data.class_names)} classes ({some(data.class_names)}); "
        f"images: {', '.join(f'{name} {len(rows)}' for name, rows in data.splits.items())}\n"
        f"           left out: {counted(data.unused)}"
    )


def describe(trainer: L.Trainer, model: L.LightningModule) -> list[str]:
    """The table's lines: data, model, optimizer groups."""
    data, frozen = trainer.datamodule, model.freezing.frozen(trainer.current_epoch)
    total = sum(p.numel() for p in model.net.parameters())
    trained = sum(p.numel() for name, p in model.net.named_parameters() if name not in frozen and p.requires_grad)
    lines = [
        data_lines(data),
        f"           {min(data.class_counts)} to {max(data.class_counts)} training images each"
        f"  (split {data.fingerprint})",
        f"           shape: {data.channels} x {data.image_size} x {data.image_size}, batch {data.batch_size}",
        f"model      {type(model.net).__name__}: {total:,} parameters, {trained:,} trainable at the start",
    ]
    lines += model.load_report.lines() if model.load_report else []
    return lines + optimizer_lines(trainer, model)


def optimizer_lines(trainer: L.Trainer, model: L.LightningModule) -> list[str]:
    """The optimizer and a table of its groups: parameters, learning rate, weight decay, trainable."""
    rows, recipe, scaled = groups_of(trainer, model), model.recipe, ""
    if recipe.reference_batch is not None:
        rate, decay = recipe.scaling(model.batch)
        scaled = f", for a batch of {model.batch}: learning rate x {rate:.4g}, weight decay x {decay:.4g}"
    width = max(5, *(len(row["group"]) for row in rows))
    lines = [
        f"optimizer  {type(trainer.optimizers[0]).__name__}{scaled}",
        f"           {'group':{width}s}  {'parameters':>12s}  {'lr':>9s}  {'decay':>8s}  trainable",
    ]
    for row in rows:
        numbers = f"{row['parameters']:>12,}  {row['rate']:>9.4g}  {row['weight_decay']:>8.4g}"
        lines.append(f"           {row['group']:{width}s}  {numbers}  {row['trainable']}")
    return lines


def fit_words(metrics: dict[str, float], saved: BestAndLast, root: Path) -> str:
    """After fit: metrics of the best epoch (of the last, without validation), its checkpoint, the next commands."""
    lines = [""]
    if "val/acc" in metrics:
        which = f"(epoch {metrics['epoch'] + 1:.0f}, the best by {saved.monitor})"
        lines.append(f"Validation accuracy {metrics['val/acc']:.2%} {which}")
    if checkpoint := saved.path("best") or saved.path("last"):
        name = short_name(checkpoint)
        lines += [
            f"checkpoint  {checkpoint}",
            f"test        python -m project test --ckpt_path {name}",
            f"predict     python -m project predict --ckpt_path {name} --data.root FOLDER --out predictions.csv",
        ]
    return "\n".join([*lines, f"curves      tensorboard --logdir {root}"])


def score_table(metrics: dict[str, float], checkpoint: Path | None) -> str:
    """After test or validate: a column for each scored split, and the classes with the lowest accuracy."""
    heads = {"val": "validation", "test": "test"}
    splits = [split for split in heads if f"{split}/loss" in metrics]
    lines = [f"{checkpoint or ''}", " " * 15 + "".join(f"{heads[split]:>12s}" for split in splits)]
    for key, title in TITLES.items():
        cells = [metrics[f"{split}/{key}"] for split in splits if f"{split}/{key}" in metrics]
        if cells:
            form = ">12.4f" if key == "loss" else ">12.2%"
            lines.append(f"{title:15s}" + "".join(f"{cell:{form}}" for cell in cells))
    of = f"{splits[-1]}/acc_class/"
    accuracies = {name.removeprefix(of): value for name, value in metrics.items() if name.startswith(of)}
    if hardest := sorted(accuracies, key=accuracies.get)[:3]:
        lines.append("hardest        " + ", ".join(f"{label} {accuracies[label]:.2%}" for label in hardest))
    if len(splits) == 2:
        lines.append("The epoch was chosen on the validation images: the test score is the one to report.")
    return "\n".join(lines)
