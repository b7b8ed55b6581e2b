"""Is the validation error below the training error (advice A2)? By epoch, on the digits, with and without augmentation.

    python -m benchmarks.validation_error [--seeds 5]

The training error is what two people may mean by it: of the augmented batches while the weights still change, as every
run logs it (1 - train/acc); or of the same images once the epoch is over, without augmentation and in eval mode, as
validation images are scored. The table has both beside the validation error, means over the seeds, and in how many of
the seeds the validation error was the lower one.

Any CPU; a minute for each seed on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import lightning as L
import torch

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "digits.yaml as it is: augmentation": [],
    "without augmentation": ["--data.augment", "null"],
    "without augmentation, 5 % of the images": ["--data.augment", "null", "--data.val_size", "0.95"],
}
EPOCHS = (1, 2, 3, 5, 8, 15)


class Errors(L.Callback):
    """After each epoch three errors: validation, training as logged, training images scored like validation."""

    def __init__(self, path: str) -> None:
        """
        Args:
            path: Of the JSON file to write.
        """
        self.path, self.rows = Path(path), []

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the module resets its training metrics."""
        images, right = trainer.datamodule.loaded["train"].images, 0
        pl_module.eval()
        for start in range(0, len(images), 256):
            batch = images.__getitems__([(0, row) for row in images.index[start : start + 256]])
            right += int((pl_module(batch["image"].to(pl_module.device)).argmax(1).cpu() == batch["label"]).sum())
        pl_module.train()
        accuracies = trainer.callback_metrics["val/acc"], pl_module.train_metrics["acc"].compute(), right / len(images)
        self.rows.append([1 - float(value) for value in accuracies])

    def on_train_end(self, *_: Any) -> None:
        self.path.write_text(json.dumps(self.rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of each setting (default: 5)")
    seeds = parser.parse_args().seeds
    print("| setting | epoch | validation | training, as logged | lower | training, scored alike | lower |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for title, options in SETTINGS.items():
        runs = []
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as name:
                command = [sys.executable, "-m", "project", "fit", "--config", "configs/digits.yaml", *options]
                command += ["--seed_everything", str(seed), "--trainer.default_root_dir", name]
                command += ["--trainer.callbacks+=benchmarks.validation_error.Errors"]
                command += [f"--trainer.callbacks.path={name}/errors.json"]
                subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=True)
                runs.append(json.loads(Path(name, "errors.json").read_text()))
        for epoch in EPOCHS:
            rows = [run[epoch - 1] for run in runs]
            validation, logged, alike = (f"{mean(column):.2%}" for column in zip(*rows, strict=True))
            below = [sum(row[0] < row[other] for row in rows) for other in (1, 2)]
            cells = [validation, logged, f"{below[0]} of {seeds}", alike, f"{below[1]} of {seeds}"]
            print(f"| {title} | {epoch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
