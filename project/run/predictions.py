"""Write predictions to a CSV file, one row for each image."""

import csv
import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor

from project.errors import UserError
from project.files import output_path, written_whole

TOP = 5  # predictions named for each image
UNCERTAIN = "uncertain"


class PredictionWriter(L.Callback):
    """path, class, probability, then the second to fifth guess; in the order of the paths, whatever the number of devices."""

    def __init__(self, path: str, min_prob: float | None = None) -> None:
        """
        Args:
            path: The file to write.
            min_prob: Below this probability the class is `uncertain`; a further column, guess, keeps its name.
        """
        if min_prob is not None and not 0 < min_prob <= 1:
            raise UserError(f"min_prob must be above 0 and at most 1, not {min_prob}")
        self.path, self.min_prob = output_path(path, "predictions.csv"), min_prob
        self._index: list[Tensor] = []
        self._probability: list[Tensor] = []
        self._class: list[Tensor] = []
        self._uncertain = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.min_prob is not None and UNCERTAIN in pl_module.class_names:
            raise UserError(f"min_prob: a class of this model is itself called {UNCERTAIN!r}; leave min_prob out")

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
        with written_whole(self.path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(header if self.min_prob is None else [*header, "guess"])
            for i, top, shares in sorted(zip(index, classes, probabilities, strict=True)):
                row = [
                    samples[i].key,
                    *(cell for k, share in zip(top, shares, strict=True) for cell in (names[k], f"{share:.6f}")),
                ]
                if self.min_prob is not None:
                    row.append(row[1])
                    if shares[0] < self.min_prob:
                        row[1] = UNCERTAIN
                        self._uncertain += 1
                table.writerow(row)

    def _report(self, count: int, bad: list[tuple[str, str]]) -> None:
        for key, why in bad:
            print(f"not predicted: {key}: {why}", file=sys.stderr)
        left = f", {len(bad)} could not be read" if bad else ""
        doubt = f", {self._uncertain} of them {UNCERTAIN}" if self.min_prob is not None else ""
        print(f"{count} predictions are in {self.path}{doubt}{left}.")
