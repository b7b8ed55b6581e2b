"""Write predictions to a CSV file, one row for each image."""

import csv
import sys
from typing import Any

import lightning as L
import torch

from project.errors import UserError
from project.files import output_path, written_whole

TOP = 5  # classes named for each image
UNCERTAIN = "uncertain"


class PredictionWriter(L.Callback):
    """Columns path, class, probability, then the next four guesses; rows ordered by path, on any number of devices."""

    def __init__(self, path: str, min_prob: float | None = None, all_probs: bool = False) -> None:
        """
        Args:
            path: The file to write.
            min_prob: Below this probability, above 0 and at most 1, the class is `uncertain`; a column guess keeps it.
            all_probs: Add a column `probability of CLASS` for each class, in the model's order.
        """
        if min_prob is not None and not 0 < min_prob <= 1:
            raise UserError(f"min_prob must be above 0 and at most 1, not {min_prob}")
        self.path, self.min_prob = output_path(path, "predictions.csv"), min_prob
        self.all_probs = all_probs
        self._rows: list[tuple] = []  # place of the image, its best classes (ints), their probabilities, those of all

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        every = outputs["probabilities"]
        best = every.topk(min(TOP, every.shape[1]), dim=1)
        columns = (outputs["index"], best.indices, best.values, every if self.all_probs else every[:, :0])
        self._rows += zip(*(column.tolist() for column in columns), strict=True)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = self._rows
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, rows)
            rows = [row for part in parts for row in part]
        if trainer.is_global_zero:
            bad = trainer.datamodule.bad
            uncertain = self._write(sorted(rows), trainer.datamodule.source.samples, pl_module.class_names)
            for key, why in bad:
                print(f"not predicted: {key}: {why}", file=sys.stderr)
            counts = f", {uncertain} of them {UNCERTAIN}" if uncertain else ""
            counts += f", {len(bad)} could not be read" if bad else ""
            print(f"{len(rows)} prediction{'s' * (len(rows) != 1)} in {self.path}{counts}.")

    def _write(self, rows, samples, names) -> int:
        """The number of uncertain images."""
        header, uncertain = ["path", "class", "probability"], 0
        header += [f"{what}_{n}" for n in range(2, min(TOP, len(names)) + 1) for what in ("class", "probability")]
        with written_whole(self.path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            header += ["guess"] * (self.min_prob is not None)
            table.writerow(header + [f"probability of {name}" for name in names] * self.all_probs)
            for place, classes, shares, every in rows:
                cells = [cell for k, p in zip(classes, shares, strict=True) for cell in (names[k], f"{p:.6f}")]
                if self.min_prob is not None:
                    cells.append(cells[0])
                    if shares[0] < self.min_prob:
                        cells[0] = UNCERTAIN
                        uncertain += 1
                table.writerow([samples[place].key, *cells, *(f"{share:.6f}" for share in every)])
        return uncertain
