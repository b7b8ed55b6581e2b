"""Write predictions to a CSV file, one row for each image."""

import csv
import os
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from project.errors import UserError

TOP = 5  # predictions named for each image


class PredictionWriter(L.Callback):
    """path, class, probability, then the second to fifth guess; in the order of the paths, whatever the number of devices."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            raise UserError(f"out: {self.path} is a folder; give a file, for example --out predictions.csv")
        if self.path.exists() and not self.path.is_file():
            raise UserError(f"out: {self.path} is no ordinary file; give one, for example --out predictions.csv")
        self.path = self.path.resolve()  # a link is to be followed, not replaced
        if not self.path.parent.is_dir():
            raise UserError(f"out: there is no folder {self.path.parent}; make it first")
        if not os.access(self.path.parent, os.W_OK):
            raise UserError(f"out: {self.path.parent} cannot be written to; choose another folder")
        self._index: list[Tensor] = []
        self._probability: list[Tensor] = []
        self._class: list[Tensor] = []

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        best = outputs["probabilities"].topk(min(TOP, outputs["probabilities"].shape[1]), dim=1)
        self._index.append(outputs["index"].cpu())
        self._probability.append(best.values.cpu())
        self._class.append(best.indices.cpu())

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = [torch.cat(parts).tolist() if parts else [] for parts in (self._index, self._class, self._probability)]
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, found)
            found = [[value for part in gathered for value in part[i]] for i in range(3)]
        if trainer.is_global_zero:
            self._write(trainer.datamodule.source.samples, pl_module.class_names, *found)
            self._report(len(found[0]), trainer.datamodule.bad)

    def _write(self, samples, names, index, classes, probabilities) -> None:
        header = ["path", "class", "probability"]
        header += [f"{what}_{n}" for n in range(2, min(TOP, len(names)) + 1) for what in ("class", "probability")]
        draft = self.path.with_name(f".{self.path.name}.part")  # an interrupted run leaves the old file as it was
        with draft.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header)
            for i, top, shares in sorted(zip(index, classes, probabilities, strict=True)):
                guesses = [cell for k, share in zip(top, shares, strict=True) for cell in (names[k], f"{share:.6f}")]
                table.writerow([samples[i].key, *guesses])
        draft.replace(self.path)

    def _report(self, count: int, bad: list[tuple[str, str]]) -> None:
        for key, why in bad:
            print(f"not predicted: {key}: {why}", file=sys.stderr)
        left = f", {len(bad)} could not be read" if bad else ""
        print(f"{count} predictions are in {self.path}{left}.")
