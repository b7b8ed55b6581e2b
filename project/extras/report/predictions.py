"""How the validation images are classified: confusions, the worst mistakes, calibration (advice A25)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from project.classifier import ImageClassifier
from project.data import ImageDataModule
from project.data.memory import Images
from project.errors import UserError
from project.extras.look import figures
from project.extras.look.gradcam import cam_layer, grad_cam
from project.extras.report.page import picture
from project.settings import load_checkpoint

BATCH = 64
SHOWN = 30  # classes in a table
MISTAKES = 16


@dataclass(frozen=True)
class Predictions:
    """Of the validation images, in the order of the split."""

    model: ImageClassifier
    probabilities: Tensor  # float32 (N, K), with the model's temperature
    losses: Tensor  # float32 (N,), infinite where the logits are not finite
    labels: Tensor  # int64 (N,)
    keys: list[int]  # what `images` knows each by
    images: Images

    @property
    def predicted(self) -> Tensor:
        """int64 (N,)."""
        return self.probabilities.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.predicted == self.labels).float().mean())

    def batch(self, rows: list[int]) -> Tensor:
        """Images, uint8 (n, C, H, W), on the model's device."""
        return self.images.whole(self.keys[row] for row in rows)["image"].to(self.model.device)


def predict(trained: tuple[ImageClassifier, ImageDataModule], checkpoint: Path) -> Predictions:
    """Classify all validation images, and no other.

    Args:
        trained: The model and the data module as the run had them.
        checkpoint: Which knows the images of the training.

    Raises:
        UserError: when there are no validation images, or not those of the training.
    """
    model, data = trained
    saved = load_checkpoint(checkpoint)[type(data).__name__]
    data.setup("validate")
    part = data.loaded["val"]
    if not torch.equal(part.identities(), saved["validated"]):
        raise UserError("the validation images, or the split, have changed since the training")
    probabilities, losses, labels = [], [], []
    with torch.no_grad():
        for start in range(0, len(part.index), BATCH):
            batch = part.images.whole(part.index[start : start + BATCH])
            logits = model(batch["image"].to(model.device)).float()
            probabilities.append(model.task.probabilities(logits / model.temperature).cpu())
            losses.append(model.task.losses(logits, batch["label"].to(model.device)).nan_to_num(torch.inf).cpu())
            labels.append(batch["label"])
    return Predictions(model, *map(torch.cat, (probabilities, losses, labels)), part.index, part.images)


def by_class(found: Predictions) -> dict[str, Any]:
    """Confusion matrix; precision, recall, F1 and images of each class; precision-recall curves."""
    names, classes = found.model.class_names, range(len(found.model.class_names))
    matrix = confusion_matrix(found.labels, found.predicted, labels=classes)  # (K, K): rows true, columns predicted
    says = f"{matrix.trace():,} of {matrix.sum():,} correct"
    wrong = matrix - np.diag(matrix.diagonal())
    if wrong.any():
        row, column = np.unravel_index(wrong.argmax(), wrong.shape)
        says += f"; the most frequent mistake is {names[row]} taken for {names[column]} ({wrong[row, column]:,})"
    scores = precision_recall_fscore_support(found.labels, found.predicted, labels=classes, zero_division=0)
    rows = [row for row in zip(names, *scores, strict=True) if row[4]]  # of the classes that have an image
    lowest = ", ".join(f"{row[0]} {row[2]:.0%}" for row in sorted(rows, key=lambda row: row[2])[:3])
    shown = sorted(rows, key=lambda row: row[3])[:SHOWN] if len(rows) > SHOWN else rows
    return {
        "confusion": picture(figures.confusion(torch.as_tensor(matrix), names), says),
        "rows": [(name, f"{p:.1%}", f"{r:.1%}", f"{f1:.1%}", f"{images:,}") for name, p, r, f1, images in shown],
        "present": len(rows),
        "total": len(names),
        "precision_recall": picture(
            figures.precision_recall(found.probabilities, found.labels, names),
            f"one for each class against all others; lowest recall of the predictions: {lowest}",
        ),
    }


def worst_mistakes(found: Predictions) -> dict[str, Any]:
    """The misclassified images with the highest loss, with Grad-CAM beside each."""
    wrong = (found.predicted != found.labels).nonzero()[:, 0]
    if not len(wrong):
        raise UserError(f"all {len(found.labels):,} validation images are classified correctly")
    worst = wrong[found.losses[wrong].argsort(descending=True, stable=True)[:MISTAKES]]
    model, images = found.model, found.batch(worst.tolist())
    true, guessed = ([model.class_names[i] for i in of[worst]] for of in (found.labels, found.predicted))
    inputs = model.normalise(images)
    layer = cam_layer(model.net, inputs[:1])
    maps = grad_cam(model.net, layer, inputs, found.predicted[worst].to(model.device)).cpu() if layer else None
    figure = figures.mistakes(images.cpu(), true, guessed, found.losses[worst], maps)
    says = f"{len(worst)} of {len(wrong)}; the worst is {true[0]} taken for {guessed[0]}"
    return {"layer": layer, "picture": picture(figure, says)}


def calibration(found: Predictions) -> dict[str, Any]:
    """Reliability diagram of the probabilities."""
    if not bool(found.probabilities.isfinite().all()):
        raise UserError("the model's outputs are not all finite numbers: its training has diverged")
    error = figures.calibration_error(found.probabilities, found.labels)
    return {
        "error": error,
        "confidence": float(found.probabilities.amax(1).mean()),
        "picture": picture(figures.reliability(found.probabilities, found.labels), f"calibration error {error:.4f}"),
    }
