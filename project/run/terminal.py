"""What is printed while a run goes on: tables at the start, one line an epoch, a bar on a terminal, the outcome at the end."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from project.optim.groups import NO_DECAY
from project.run.plan import groups_of

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
        parts.append(rate_words({name[3:]: float(value) for name, value in metrics.items() if name.startswith("lr/")}))
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        Tqdm.write(
            f"epoch {epoch}{of}  {'  '.join(parts)}  {SECONDS() - self._start:.1f} s"
        )  # above the bar, if there is one
        sys.stdout.flush()


class StartTable(L.Callback):
    """Prints, before the first epoch, what is going to be trained on what, and how."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            print("\n".join(describe(trainer, pl_module)), flush=True)


SHOWN_RATES = 4  # groups whose rates fit on an epoch's line


def rate_words(rates: dict[str, float]) -> str:
    """The rates in force; of many groups the lowest and the highest."""
    alike = {
        name
        for name, rate in rates.items()
        if name.endswith(NO_DECAY) and rates.get(name.removesuffix(NO_DECAY)) == rate
    }
    together = {name: rate for name, rate in rates.items() if name not in alike}
    if len(together) <= SHOWN_RATES:
        return "  ".join(f"lr/{name} {rate:.3g}" for name, rate in together.items())
    low, high = min(together, key=together.__getitem__), max(together, key=together.__getitem__)
    return f"lr/{low} {together[low]:.3g} to lr/{high} {together[high]:.3g}"


def describe(trainer: L.Trainer, model: L.LightningModule) -> list[str]:
    """The table's lines: data, model, optimizer groups."""
    data, lines = trainer.datamodule, []
    if data is not None:
        sizes = "  ".join(f"{name} {len(rows)}" for name, rows in data.splits.items())
        counts = data.class_counts
        span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        lines.append(f"data       {len(data.class_names)} classes, {span} training images each")
        lines.append(f"           images: {sizes}  (split {data.fingerprint})")
        lines.append(
            f"           shape: {data.channels} x {data.image_size} x {data.image_size}, batch {data.batch_size}"
        )
        if data.bad:
            names = ", ".join(key for key, _ in data.bad[:3]) + (", ..." if len(data.bad) > 3 else "")
            lines.append(f"           left out {len(data.bad)} images that cannot be read: {names}")
    total = sum(p.numel() for p in model.net.parameters())
    frozen = model.freezing.frozen(trainer.current_epoch)
    trained = sum(p.numel() for name, p in model.net.named_parameters() if name not in frozen and p.requires_grad)
    lines.append(f"model      {type(model.net).__name__}: {total:,} parameters, {trained:,} trainable at the start")
    if model.load_report is not None:
        first, *rest = model.load_report.lines()
        lines += [f"weights    {first.removeprefix('weights: ')}", *(f"           {line.strip()}" for line in rest)]
    lines += optimizer_lines(trainer, model)
    device = trainer.strategy.root_device.type
    length = f"{trainer.max_epochs} epochs" if (trainer.max_epochs or -1) > 0 else f"{trainer.max_steps} steps"
    length = length if "-1" not in length else "as long as max_time says"
    lines.append(f"device     {trainer.world_size} x {device}, precision {trainer.precision}, {length}")
    return lines


def optimizer_lines(trainer: L.Trainer, model: L.LightningModule) -> list[str]:
    """The optimizer and a table of its groups: parameters, learning rate, weight decay, trainable."""
    rows, recipe, scaled = groups_of(trainer, model), model.recipe, ""
    if recipe.reference_batch is not None:
        rate, decay = recipe.scaling(model.batch)
        words = f"{recipe.lr_scaling} scaling for a batch of {model.batch} instead of {recipe.reference_batch}"
        factors = f"learning rate x {rate:.4g}, weight decay x {decay:.4g}"
        scaled = f", {words}: {factors}" if rate != 1 else f", for a batch of {model.batch}"
    width = max(5, *(len(row["group"]) for row in rows))
    lines = [
        f"optimizer  {type(trainer.optimizers[0]).__name__}{scaled}",
        f"           {'group':{width}s}  {'parameters':>12s}  {'lr':>9s}  {'decay':>8s}  trainable",
    ]
    for row in rows:
        numbers = f"{row['parameters']:>12,}  {row['rate']:>9.4g}  {row['weight_decay']:>8.4g}"
        lines.append(f"           {row['group']:{width}s}  {numbers}  {row['trainable']}")
    return lines
