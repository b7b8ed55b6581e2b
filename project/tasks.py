"""What is predicted: its loss, metrics, probabilities and names (`model.task`).

A task of your own is a subclass of one of these in a file of its own, named in YAML by its path; everything else
(steps, report, check, export) asks it.
"""

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassStatScores

from project.errors import UserError

if TYPE_CHECKING:
    from project.data import ImageDataModule

PER_CLASS_LIMIT = 100  # classes whose accuracies are logged one by one; ImageNet's thousand curves would help nobody


class Task(nn.Module):
    """The seam. Targets are what the batches hold under `label`; in MultiClass, int64 (N,). A task has these besides:

    - `chance_loss`, float: of a network that knows nothing, where a training should start.
    - `loss(logits, targets)`: what training minimises, a scalar. Logits (N, outputs); targets, or their `shares`.
    - `losses(logits, targets)`: the plain loss of each image, (N,), unweighted, unsmoothed; it ranks the mistakes.
    - `shares(targets)`: as float (N, outputs), which mixup and cutmix can blend; `unmixed(targets)` for the metrics.
    - `probabilities(logits)`: (N, outputs) -> (N, outputs). Traced into exported files.
    - `train_metrics()`: a MetricCollection named train/...; few, since they are updated in every step.
    - `metrics(prefix)`: one over all validation or test images, named by val/ or test/, given logits and targets.
    """

    def __init__(self, class_names: list[str]) -> None:
        """
        Args:
            class_names: One name for each output of the network, in order. The data module gives them.
        """
        super().__init__()
        self.class_names = list(class_names)
        self.outputs = len(self.class_names)  # numbers that the network gives for an image

    def prepare(self, data: "ImageDataModule") -> None:
        """Take what the loss needs from the training images; called before a training."""

    def scores(self, metrics: MetricCollection, prefix: str) -> dict[str, Tensor]:
        """What is logged of `metrics`, name -> value."""
        return metrics.compute()

    def score_names(self, prefix: str) -> set[str]:
        """The names that `scores` can have."""
        return set(self.metrics(prefix))


class MultiClass(Task):
    """Exactly one of the classes."""

    def __init__(
        self,
        class_names: list[str],
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
    ) -> None:
        """
        Args:
            class_names: One name for each class. The data module gives them.
            label_smoothing: Share of the target spread over all classes (Szegedy et al. 2015, arXiv:1512.00567), 0 to
                below 1.
            class_weights: Weight of each class in the loss; balanced makes it inversely proportional to the class's
                images.
        """
        super().__init__(class_names)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.task.label_smoothing must be at least 0 and below 1, not {label_smoothing}")
        given = class_weights if isinstance(class_weights, list) else [1.0] * self.outputs
        if len(given) != self.outputs or min(given) <= 0:
            raise UserError(f"model.task.class_weights must be {self.outputs} numbers above 0, or balanced")
        self.label_smoothing, self.balanced = label_smoothing, class_weights == "balanced"
        self.register_buffer("class_weights", torch.tensor(given))

    @property
    def chance_loss(self) -> float:
        """ln C (advice A15)."""
        return math.log(self.outputs)

    def prepare(self, data: "ImageDataModule") -> None:
        if not self.balanced:
            return
        if data.sampler == "balanced":
            raise UserError("model.task.class_weights and data.sampler: balanced correct imbalance twice; choose one")
        counts = torch.tensor(data.class_counts, dtype=torch.float32).clamp(min=1)
        self.class_weights.copy_(counts.sum() / (self.outputs * counts))  # mean weight of an image: 1

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with labels (N,), or shares (N, outputs); with class weights, the weighted mean."""
        weight = self.class_weights.float()  # like the logits, whatever the precision of the run
        options = {"weight": weight, "label_smoothing": self.label_smoothing}
        if targets.ndim == 1:
            return nn.functional.cross_entropy(logits.float(), targets, **options)
        # For shares torch's mean forgets the weights: mixing would change the size of the loss, and so of the steps.
        total = nn.functional.cross_entropy(logits.float(), targets.float(), reduction="sum", **options)
        return total / (targets * weight).sum()

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    def shares(self, targets: Tensor) -> Tensor:
        return nn.functional.one_hot(targets, self.outputs).float()

    def unmixed(self, targets: Tensor) -> Tensor:
        return targets.argmax(1) if targets.ndim == 2 else targets

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def train_metrics(self) -> MetricCollection:
        return MetricCollection({"acc": self._accuracy()}, prefix="train/")

    def metrics(self, prefix: str) -> MetricCollection:
        found: dict[str, Metric] = {
            "acc": self._accuracy(),
            "f1_macro": MulticlassF1Score(self.outputs, average="macro", validate_args=False),
            "by_class": MulticlassStatScores(self.outputs, average="none", validate_args=False),
        }
        if self.outputs > 5:  # with five classes or fewer it would always be 1
            found["acc_top5"] = self._accuracy(top_k=5)
        # Spelt out, because torchmetrics would merge metrics whose first batch came out alike, as top-1 and top-5
        # often do.
        groups = [["f1_macro", "by_class"], *([name] for name in found if name in ("acc", "acc_top5"))]
        return MetricCollection(found, prefix=prefix, compute_groups=groups)

    def scores(self, metrics: MetricCollection, prefix: str) -> dict[str, Tensor]:
        values = metrics.compute()
        by_class = values.pop(f"{prefix}by_class")  # (outputs, 5): true and false positives, negatives, and images
        if self.outputs <= PER_CLASS_LIMIT:
            for name, (right, *_, count) in zip(self.class_names, by_class, strict=True):
                if count:  # a class without images has no accuracy, rather than one of 0
                    values[f"{prefix}acc_class/{name}"] = right / count
        return values

    def score_names(self, prefix: str) -> set[str]:
        by_class = (
            {f"{prefix}acc_class/{name}" for name in self.class_names} if self.outputs <= PER_CLASS_LIMIT else set()
        )
        return super().score_names(prefix) - {f"{prefix}by_class"} | by_class

    def _accuracy(self, top_k: int = 1) -> MulticlassAccuracy:
        return MulticlassAccuracy(self.outputs, top_k=top_k, average="micro", validate_args=False)
