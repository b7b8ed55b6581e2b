"""What the model says of the validation images: which classes it confuses, its mistakes, its confidence (advice A25)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from project.classifier import ImageClassifier
from project.data import ImageDataModule
from project.data.memory import Images
from project.errors import UserError
from project.extras.look import figures
from project.extras.look.gradcam import cam_layer, grad_cam
from project.extras.report.page import heading, missing, paragraph, picture, table

BATCH = 64
SHOWN = 30  # classes in a table
MISTAKES = 16


@dataclass(frozen=True)
class Predictions:
    """Of the validation images, in the order of the split."""

    logits: Tensor  # float32 (N, K), not divided by the temperature
    labels: Tensor  # int64 (N,)
    keys: list[int]  # what `images` knows each by
    images: Images

    @property
    def predicted(self) -> Tensor:
        return self.logits.argmax(1)

    @property
    def matrix(self) -> Tensor:
        """(K, K) counts: rows true, columns predicted."""
        classes = self.logits.shape[1]
        return torch.bincount(self.labels * classes + self.predicted, minlength=classes**2).view(classes, classes)

    def batch(self, rows: list[int]) -> Tensor:
        """Images, uint8 (n, C, H, W)."""
        return self.images.__getitems__([(0, self.keys[row]) for row in rows])["image"]


def predict(model: ImageClassifier, data: ImageDataModule, saved: dict) -> Predictions:
    """Classify all validation images, and no other; without gradients, in eval mode.

    Args:
        model: With its trained weights.
        data: As the run had it.
        saved: What the checkpoint says of the images: the data module's state.

    Raises:
        UserError: when there are no validation images, or not those of the training.
    """
    if not data.splits["val"]:
        raise UserError("the run has no validation images")
    if data.fingerprint != saved["fingerprint"]:
        raise UserError(
            f"the images or their split have changed since the training (split {saved['fingerprint']}, now {data.fingerprint})"
        )
    data.setup("validate")
    part = data.loaded["val"]
    if "validated" in saved and not torch.equal(part.identities(), saved["validated"]):
        raise UserError("the content of validation images has changed since the training")
    device = next(model.parameters()).device
    model.eval()
    logits, labels = [], []
    with torch.no_grad():
        for start in range(0, len(part.index), BATCH):
            batch = part.images.__getitems__([(0, key) for key in part.index[start : start + BATCH]])
            logits.append(model(batch["image"].to(device)).float().cpu())
            labels.append(batch["label"])
    return Predictions(torch.cat(logits), torch.cat(labels), part.index, part.images)


def class_rows(matrix: Tensor) -> list[tuple[float, float, float, int]]:
    """Precision, recall, F1 and images of each class; 0 where it was never predicted, or has no image, as in scikit-learn.

    Args:
        matrix: (K, K) counts: rows true, columns predicted.
    """
    right, true, predicted = matrix.diag().double(), matrix.sum(1).double(), matrix.sum(0).double()
    precision, recall = right / predicted.clamp(min=1), right / true.clamp(min=1)
    f1 = 2 * right / (true + predicted).clamp(min=1)
    return list(zip(precision.tolist(), recall.tolist(), f1.tolist(), true.long().tolist(), strict=True))


def results_by_class(found: Predictions, names: list[str]) -> list[str]:
    """Confusion matrix, table of classes, precision and recall."""
    matrix, rows = found.matrix, class_rows(found.matrix)
    order = sorted((i for i, row in enumerate(rows) if row[3]), key=lambda i: (rows[i][2], i))
    worst = order[:SHOWN]
    shown = worst if len(order) > SHOWN else sorted(worst)
    caption = (
        f"Validation images by class; the {SHOWN} of {len(names)} classes with the lowest F1"
        if len(order) > SHOWN
        else "Validation images by class"
    )
    cells = [[names[i], *(f"{value:.1%}" for value in rows[i][:3]), f"{rows[i][3]:,}"] for i in shown]
    lowest = ", ".join(f"{names[i]} {rows[i][1]:.0%}" for i in sorted(order, key=lambda i: (rows[i][1], i))[:3])
    probabilities = found.logits.softmax(1)
    without = len(rows) - len(order)
    return [
        heading("Which class is taken for which"),
        paragraph(
            "Each row holds the images of one true class, each column what the model called them; all on the diagonal is right."
        ),
        picture(lambda: figures.confusion(matrix, names), "Confusion matrix", confusion_words(matrix, names)),
        heading("Each class"),
        paragraph(
            "Recall: of the images of the class, the share found. Precision: of the images given its name, "
            "the share that is of it. F1: both in one."
        ),
        table(caption, ["class", "precision", "recall", "F1", "images"], cells),
        *([paragraph(f"{without} classes have no validation image.", "soft")] if without else []),
        heading("Precision against recall"),
        paragraph(
            "Whoever only accepts the surest answers gains precision and loses recall; "
            "a curve in the upper right corner loses little."
        ),
        picture(
            lambda: figures.precision_recall(probabilities, found.labels, names),
            "Precision-recall curves",
            f"one for each class against all others; lowest recall at the model's own choice: {lowest}",
        ),
    ]


def confusion_words(matrix: Tensor, names: list[str]) -> str:
    """The matrix in a sentence: "352 of 360 right; most often 8 taken for 1, 3 times"."""
    right, total = int(matrix.trace()), int(matrix.sum())
    wrong = matrix - torch.diag(matrix.diag())
    if not int(wrong.max()):
        return f"all {total:,} right"
    row, column = divmod(int(wrong.flatten().argmax()), len(names))
    times = int(wrong[row, column])
    return f"{right:,} of {total:,} right; most often {names[row]} taken for {names[column]}, {times} time{'s' if times > 1 else ''}"


def worst_mistakes(model: ImageClassifier, found: Predictions) -> list[str]:
    """The wrong images with the highest loss, with Grad-CAM beside each."""
    losses = nn.functional.cross_entropy(found.logits, found.labels, reduction="none").nan_to_num(torch.inf)
    wrong = (found.predicted != found.labels).nonzero()[:, 0]
    if not len(wrong):
        return [missing("The worst mistakes", f"all {len(found.labels):,} validation images are classified rightly")]
    worst = wrong[losses[wrong].argsort(descending=True, stable=True)[:MISTAKES]]
    images = found.batch(worst.tolist())
    names = model.class_names
    true, guessed = ([names[i] for i in which[worst].tolist()] for which in (found.labels, found.predicted))
    inputs = model.normalise(images.to(next(model.parameters()).device))
    layer = cam_layer(model.net, inputs[:1])
    maps = None if layer is None else grad_cam(model.net, layer, inputs, found.predicted[worst].to(inputs.device)).cpu()
    says = f"{len(worst)} of {len(wrong)}; the worst is {true[0]} taken for {guessed[0]}"
    beside = (
        f" Beside each: where the network saw what it predicted (Grad-CAM at {layer}), bright is much." if layer else ""
    )
    return [
        paragraph(
            f"The wrong answers of which the model was surest. Some may be wrong labels: look before you blame the model.{beside}"
        ),
        picture(lambda: figures.mistakes(images, true, guessed, losses[worst], maps), "Worst mistakes", says),
        *([] if layer else [missing("Grad-CAM", "no convolution of this network gives the last feature maps")]),
    ]


def confidence(model: ImageClassifier, found: Predictions) -> list[str]:
    """Reliability diagram of the probabilities that the model gives, with its temperature."""
    if not bool(found.logits.isfinite().all()):
        return [missing("Calibration", "the model's outputs are not all finite numbers: its training has diverged")]
    probabilities = (found.logits / model.temperature).softmax(1)
    error = figures.calibration_error(probabilities, found.labels)
    mean, right = float(probabilities.amax(1).mean()), float((found.predicted == found.labels).float().mean())
    side = "too sure" if mean > right else "not sure enough"
    fitted = (
        f"with the temperature {model.temperature:.3g} that export fitted on these images"
        if model.temperature != 1
        else "not calibrated: export does that"
    )
    return [
        paragraph(
            f"If the model says 80 %, is it right in 80 of 100 cases? Its mean confidence is {mean:.1%}, "
            f"it is right in {right:.1%}: on the whole {side}. "
            f"The calibration error, the mean distance of the two, is {error:.4f} ({fitted})."
        ),
        picture(
            lambda: figures.reliability(probabilities, found.labels),
            "Reliability diagram",
            f"calibration error {error:.4f}, {side}",
        ),
    ]
