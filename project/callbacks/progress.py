"""What is printed while a run goes on: tables at the start, one line an epoch, a bar on a terminal, the outcome at the end."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

SECONDS = time.monotonic


class TerminalBar(TQDMProgressBar):
    """Lightning's bar, on a terminal only: in a log file it would be thousands of lines."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10 if sys.stdout.isatty() else 0)

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"epoch {trainer.current_epoch + 1}")  # counted as everywhere else

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {}  # the epoch's line shows them


class EpochLine(L.Callback):
    """Prints one line after every epoch: losses, accuracy, the rate of every group (advice A17), time."""

    def __init__(self) -> None:
        self._start = SECONDS()
        self._epoch = 0
        self._validated = False

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._print(trainer)  # of the epoch before: its metrics are complete only after its last hook
        self._start, self._epoch, self._validated = SECONDS(), trainer.current_epoch + 1, False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validated = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._print(trainer)

    def _print(self, trainer: L.Trainer) -> None:
        epoch, self._epoch = self._epoch, 0
        metrics = trainer.callback_metrics
        if not epoch or not trainer.is_global_zero or "train/loss" not in metrics:
            return
        shown = ("train/loss", "val/loss", "val/acc") if self._validated else ("train/loss",)
        parts = [f"{name} {float(metrics[name]):.4f}" for name in shown if name in metrics]
        parts += [f"{name} {float(value):.3g}" for name, value in metrics.items() if name.startswith("lr/")]
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        Tqdm.write(f"epoch {epoch}{of}  {'  '.join(parts)}  {SECONDS() - self._start:.1f} s")  # above the bar, if there is one
        sys.stdout.flush()


class StartTable(L.Callback):
    """Prints, before the first epoch, what is going to be trained on what, and how."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            print("\n".join(describe(trainer, pl_module)), flush=True)


def describe(trainer: L.Trainer, model: L.LightningModule) -> list[str]:
    """The table's lines: data, model, optimizer groups."""
    data, lines = trainer.datamodule, []
    if data is not None:
        sizes = "  ".join(f"{name} {len(rows)}" for name, rows in data.splits.items())
        counts = data.class_counts
        span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        lines.append(f"data       {len(data.class_names)} classes, {span} training images each")
        lines.append(f"           images: {sizes}  (split {data.fingerprint})")
        lines.append(f"           shape: {data.channels} x {data.image_size} x {data.image_size}, batch {data.batch_size}")
        if data.bad:
            names = ", ".join(key for key, _ in data.bad[:3]) + (", ..." if len(data.bad) > 3 else "")
            lines.append(f"           left out {len(data.bad)} images that cannot be read: {names}")
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    total, trained = sum(n for n, _ in parameters), sum(n for n, used in parameters if used)
    lines.append(f"model      {type(model.net).__name__}: {total:,} parameters, {trained:,} trainable")
    for optimizer in trainer.optimizers:
        for i, group in enumerate(optimizer.param_groups):
            count = sum(p.numel() for p in group["params"])
            rate = group.get("initial_lr", group["lr"])  # a scheduler has already moved lr to its first step's
            title = f"{type(optimizer).__name__:10s}" if i == 0 else " " * 10
            lines.append(
                f"{title} group {group['name']}: {count:,} parameters, rate {rate:g}, weight decay {group.get('weight_decay', 0):g}"
            )
    device = trainer.strategy.root_device.type
    length = f"{trainer.max_epochs} epochs" if (trainer.max_epochs or -1) > 0 else f"{trainer.max_steps} steps"
    length = length if "-1" not in length else "as long as max_time says"
    lines.append(f"device     {trainer.world_size} x {device}, precision {trainer.precision}, {length}")
    return lines
