"""What is predicted: its loss, metrics, probabilities and names (`model.task`).

A task of your own is a subclass of one of these in a file of its own, named in YAML by its path; everything else
(steps, report, check, export) asks it.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassStatScores

from project.data.module import ImageDataModule
from project.errors import UserError

PER_CLASS_LIMIT = 100  # classes whose accuracies are logged one by one; ImageNet's thousand curves would help nobody


class Task(nn.Module):
    """The seam. Targets are what the batches hold under `label`; in MultiClass, int64 (N,). A task has these besides:

    - `chance_loss`, float: of a network that knows nothing, where a training should start.
    - `loss(logits, targets)`: what training minimises, a mean over the N images. Logits (N, outputs); targets, or their
      `shares`.
    - `losses(logits, targets)`: the plain loss of each image, (N,), unweighted, unsmoothed: val/loss and test/loss are
      its mean, and it ranks the mistakes.
    - `shares(targets)`: as float (N, outputs), which mixup and cutmix can blend; `unmixed(targets)` for the metrics.
    - `probabilities(logits)`: (N, outputs) -> (N, outputs). Traced into exported files.
    - `train_metrics()`: a MetricCollection named train/...; few, since they are updated in every step.
    - `metrics(prefix)`: one over all validation or test images, named by val/ or test/, given logits and targets.
    """

    weighted = False  # whether `loss` makes up for classes of unequal size

    def __init__(self, class_names: list[str]) -> None:
        """
        Args:
            class_names: One name for each output of the network, in order. The data module gives them.
        """
        super().__init__()
        self.class_names = list(class_names)
        self.outputs = len(self.class_names)  # numbers that the network gives for an image

    def prepare(self, data: ImageDataModule) -> None:
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
        class_weights: Literal["balanced"] | list[float] | dict[str, float] | None = None,
    ) -> None:
        """
        Args:
            class_names: One name for each class. The data module gives them.
            label_smoothing: Share of the target spread over all classes (Szegedy et al. 2015, arXiv:1512.00567), 0 to
                below 1.
            class_weights: Weight of each class's images in the loss of the training, as a list or by name; balanced
                makes it inversely proportional to the number of its images. They are scaled to a mean of 1 over the
                training images.
        """
        super().__init__(class_names)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.task.label_smoothing must be at least 0 and below 1, not {label_smoothing}")
        self.listed = self.class_names if self.outputs <= PER_CLASS_LIMIT else []
        given, self.label_smoothing = class_weights, label_smoothing
        self.weighted, self.balanced = given is not None, given == "balanced"
        if isinstance(given, dict):
            given = {str(name): weight for name, weight in given.items()}  # YAML reads 0 as a number
            if wrong := sorted(given.keys() ^ set(class_names)):
                raise UserError(f"model.task.class_weights: missing or unknown classes: {', '.join(wrong[:10])}")
            given = [given[name] for name in class_names]
        if not isinstance(given, list):
            given = [1.0] * self.outputs
        if len(given) != self.outputs or not all(0 < weight < math.inf for weight in given):
            raise UserError(f"model.task.class_weights must be {self.outputs} numbers above 0, or balanced")
        self.register_buffer("class_weights", torch.tensor(given, dtype=torch.float32))

    @property
    def chance_loss(self) -> float:
        """ln C (advice A15)."""
        return math.log(self.outputs)

    def prepare(self, data: ImageDataModule) -> None:
        if not data and self.balanced:
            raise UserError("model.task.class_weights: balanced needs an ImageDataModule, which counts; give numbers")
        if not self.weighted or not data:  # given ones stay as they are
            return
        if data.sampler == "balanced":
            raise UserError("model.task.class_weights and data.sampler: balanced correct imbalance twice; choose one")
        counts = torch.tensor(data.class_counts).float()
        weights = 1 / counts.clamp(min=1) if self.balanced else self.class_weights.float()
        self.class_weights.copy_(weights * counts.sum() / (counts @ weights))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with labels (N,), or shares (N, outputs); with class weights, of weighted images.

        torch's own weights would weigh each term of a smoothed target by the class of that term, which pulls large
        classes towards small ones: here an image has one weight.
        """
        loss = cross_entropy(
            logits.float(), targets, reduction="none" if self.weighted else "mean", label_smoothing=self.label_smoothing
        )
        return (loss * self.weights(targets)).mean() if self.weighted else loss

    def weights(self, targets: Tensor) -> Tensor:
        """Of each image, (N,): its class's; of mixed classes the mean, by their shares."""
        weights = self.class_weights.float()  # like the logits, whatever the precision of the run
        return weights[targets] if targets.ndim == 1 else (targets * weights).sum(1)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits.float(), targets, reduction="none")

    def shares(self, targets: Tensor) -> Tensor:
        return one_hot(targets, self.outputs).float()

    def unmixed(self, targets: Tensor) -> Tensor:
        return targets.argmax(1) if targets.ndim == 2 else targets

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=1)

    def train_metrics(self) -> MetricCollection:
        return MetricCollection({"acc": self._accuracy()}, prefix="train/")

    def metrics(self, prefix: str) -> MetricCollection:
        found = {
            "acc": self._accuracy(),
            "f1_macro": MulticlassF1Score(self.outputs, average="macro", validate_args=False),
            "by_class": MulticlassStatScores(self.outputs, average="none", validate_args=False),
        }
        if self.outputs > 5:  # with five classes or fewer it would always be 1
            found["acc_top5"] = self._accuracy(top_k=5)
        if self.weighted:
            found["weighted_loss"] = _WeightedLoss(self)
        # Each by itself: torchmetrics would merge those whose first batch came out alike, as top-1 and top-5 often do.
        return MetricCollection(found, prefix=prefix, compute_groups=False)

    def scores(self, metrics: MetricCollection, prefix: str) -> dict[str, Tensor]:
        values = metrics.compute()
        by_class = values.pop(f"{prefix}by_class")  # (outputs, 5): true and false positives, negatives, and images
        for name, (right, *_, count) in zip(self.listed, by_class, strict=False):
            if count:  # a class without images has no accuracy, rather than one of 0
                values[f"{prefix}acc_class/{name}"] = right / count
        return values

    def score_names(self, prefix: str) -> set[str]:
        by_class = {f"{prefix}acc_class/{name}" for name in self.listed}
        return super().score_names(prefix) - {f"{prefix}by_class"} | by_class

    def _accuracy(self, top_k: int = 1) -> MulticlassAccuracy:
        return MulticlassAccuracy(self.outputs, top_k=top_k, average="micro", validate_args=False)


class Mean(MeanMetric):
    """torchmetrics' without its search for losses that are no numbers, in which each step would wait for the GPU."""

    def update(self, value: Tensor, weight: Tensor | int = 1) -> None:
        self.mean_value += (value * weight).sum()
        self.weight += weight.sum() if isinstance(weight, Tensor) else weight * value.numel()


class _WeightedLoss(Mean):
    """The plain losses, weighted by class, over the sum of the weights."""

    def __init__(self, task: MultiClass) -> None:
        super().__init__()
        self._losses, self._weights = task.losses, task.weights

    def update(self, logits: Tensor, targets: Tensor) -> None:
        super().update(self._losses(logits, targets), self._weights(targets))
