"""The image classifier: network, loss, metrics, steps and optimizer in one LightningModule (card C3)."""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassStatScores

from project.errors import UserError
from project.nets.blocks import InitScheme, initialize
from project.optim import Schedule, param_groups

NetCallable = Callable[[int, int, int], nn.Module]  # (in_channels, num_classes, image_size) -> network
OptimizerCallable = Callable[[Iterable, float], Optimizer]  # (parameter groups, lr) -> optimizer
SchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
Batch = dict[str, Tensor]  # image (N, C, H, W), uint8 or float in [0, 1]; label int64 (N,); index int64 (N,)

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PER_CLASS_LIMIT = 100  # classes whose accuracies are logged one by one; ImageNet's thousand curves would help nobody


class ImageClassifier(L.LightningModule):
    """Classifies images into the classes that the data module names."""

    def __init__(
        self,
        net: NetCallable,
        class_names: list[str],
        in_channels: int = 3,
        image_size: int = 32,
        resize: str = "letterbox",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        init: InitScheme = "default",
        lr: float = 1e-3,
        optimizer: OptimizerCallable | None = None,
        schedule: Schedule | SchedulerCallable | None = None,
        schedule_interval: Literal["epoch", "step"] = "epoch",
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        channels_last: bool = True,
    ) -> None:
        """
        Args:
            net: Class of the network, by its path, with its arguments: project.nets.ConvNet, project.nets.TorchvisionModel...
            class_names: One name for each output, in order. The data module gives them.
            in_channels: Channels of the images. The data module gives them.
            image_size: Pixels of a side. The data module gives it.
            resize: How images were brought to that size; kept for whoever uses the model. The data module gives it.
            mean: Mean of each channel over the training images, in [0, 1], for the normalisation; null takes ImageNet's.
            std: Standard deviation of each channel, likewise.
            init: First weights (A7): default (PyTorch's own), xavier_normal, xavier_uniform, kaiming_normal, kaiming_uniform.
            lr: The learning rate, for every optimizer. It is the rate at its highest; a schedule lowers it.
            optimizer: Class of the optimizer with its arguments, the rate excepted; null takes torch.optim.AdamW.
            schedule: How the rate changes: one of project.optim (stepped every step) or of torch.optim.lr_scheduler.
            schedule_interval: When one of torch's schedulers is stepped: after every epoch or after every optimizer step.
            label_smoothing: Share of the target spread over all classes (Szegedy et al. 2015, arXiv:1512.00567), 0 to below 1.
            class_weights: Weight of each class in the loss; balanced makes it inversely proportional to the class's images.
            channels_last: Keep images and weights in NHWC order: faster convolutions on CPU and on tensor cores.
        """
        super().__init__()
        if lr <= 0:
            raise UserError(f"model.lr must be above 0, not {lr}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing must be at least 0 and below 1, not {label_smoothing}")
        self.save_hyperparameters(logger=False)
        self.class_names, self.num_classes = list(class_names), len(class_names)
        self.image_size, self.in_channels, self.resize = image_size, in_channels, resize
        self.lr, self.label_smoothing, self.channels_last = lr, label_smoothing, channels_last
        self.make_optimizer, self.schedule, self.schedule_interval = optimizer or AdamW, schedule, schedule_interval
        if schedule_interval == "step" and (schedule is None or isinstance(schedule, Schedule)):
            raise UserError("model.schedule_interval: step has an effect on a scheduler of torch only; remove it")

        self.net = net(in_channels, self.num_classes, image_size)
        initialize(self.net, init)
        if channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)
        mean, std = _normalisation(in_channels, mean, std)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.balance_loss = class_weights == "balanced"
        if isinstance(class_weights, list) and (len(class_weights) != self.num_classes or min(class_weights) <= 0):
            raise UserError(f"model.class_weights must be {self.num_classes} numbers above 0, one for each class, or balanced")
        weights = class_weights if isinstance(class_weights, list) else [1.0] * self.num_classes
        self.register_buffer("class_weights", torch.tensor(weights))

        self.rates: dict[str, float] = {}
        self.train_loss, self.train_acc = MeanMetric(), self._accuracy()
        self.val_loss, self.val_metrics = MeanMetric(), self._metrics("val/")
        self.test_loss, self.test_metrics = MeanMetric(), self._metrics("test/")

    def _accuracy(self, top_k: int = 1) -> MulticlassAccuracy:
        return MulticlassAccuracy(self.num_classes, top_k=top_k, average="micro", validate_args=False)

    def _metrics(self, prefix: str) -> MetricCollection:
        metrics = {
            "acc": self._accuracy(),
            "f1_macro": MulticlassF1Score(self.num_classes, average="macro", validate_args=False),
            "by_class": MulticlassStatScores(self.num_classes, average="none", validate_args=False),
        }
        if self.num_classes > 5:  # with five classes or fewer it would always be 1
            metrics["acc_top5"] = self._accuracy(top_k=5)
        # Spelt out, because torchmetrics would merge metrics whose first batch came out alike, as top-1 and top-5 often do.
        groups = [["f1_macro", "by_class"], *([name] for name in metrics if name in ("acc", "acc_top5"))]
        return MetricCollection(metrics, prefix=prefix, compute_groups=groups)

    def setup(self, stage: str) -> None:
        """Take the class counts from the data module, where the loss is to be balanced."""
        if stage == "fit" and self.balance_loss:
            data = self.trainer.datamodule
            if data.sampler == "balanced":
                raise UserError("model.class_weights: balanced and data.sampler: balanced correct the imbalance twice; choose one")
            counts = torch.tensor(data.class_counts, dtype=torch.float32).clamp(min=1)
            self.class_weights.copy_(counts.sum() / (self.num_classes * counts))  # mean weight of an image: 1

    def normalise(self, images: Tensor) -> Tensor:
        """uint8, or float in [0, 1], (N, C, H, W) -> float with the training images' mean 0 and deviation 1."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        images = (images - self.mean) / self.std
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float in [0, 1] -> logits (N, num_classes)."""
        return self.net(self.normalise(images))

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float in [0, 1] -> float32 probabilities (N, num_classes)."""
        return self(images).float().softmax(dim=1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; with class weights, the weighted mean."""
        return nn.functional.cross_entropy(logits.float(), labels, weight=self.class_weights, label_smoothing=self.label_smoothing)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch["image"])
        loss = self.loss(logits, batch["label"])
        # Metrics are updated here and logged once an epoch: self.log in every step would cost more than a small network's step.
        self.train_loss.update(loss.detach(), len(logits))
        self.train_acc.update(logits.detach(), batch["label"])
        # A17: the rate in force, of every group; by the end of the epoch a scheduler will have set the next one
        self.rates = {f"lr/{group['name']}": group["lr"] for group in self.trainer.optimizers[0].param_groups}
        if (every := self.trainer.log_every_n_steps) and self.global_step % every == 0:
            for logger in self.loggers:
                logger.log_metrics({"train/loss_step": loss.item()}, step=self.global_step)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict({"train/loss": self.train_loss.compute(), "train/acc": self.train_acc.compute()})
        self.train_loss.reset()
        self.train_acc.reset()
        self.log_dict(self.rates)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_loss, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_loss, self.test_metrics)

    def _evaluate(self, batch: Batch, loss: MeanMetric, metrics: MetricCollection) -> None:
        logits = self(batch["image"])
        loss.update(self.loss(logits, batch["label"]), len(logits))
        metrics.update(logits, batch["label"])

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val", self.val_loss, self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test", self.test_loss, self.test_metrics)

    def _log_evaluation(self, name: str, loss: MeanMetric, metrics: MetricCollection) -> None:
        """Log over all images of all ranks: `compute` gathers them, each counted once."""
        values = metrics.compute()
        by_class = values.pop(f"{name}/by_class")  # (num_classes, 5): true and false positives, negatives, and images
        if self.num_classes <= PER_CLASS_LIMIT:
            for label, (right, *_, count) in zip(self.class_names, by_class, strict=True):
                if count:  # a class without images has no accuracy, rather than one of 0
                    values[f"{name}/acc_class/{label}"] = right / count
        self.log_dict({f"{name}/loss": loss.compute(), **values})
        loss.reset()
        metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """index (N,), and probabilities (N, num_classes)."""
        return {"index": batch["index"], "probabilities": self.probabilities(batch["image"])}

    def _total_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise UserError("model.schedule: the schedules of project.optim need to know the end: set trainer.max_epochs")
        return int(total)

    def configure_optimizers(self) -> Any:
        groups = param_groups(self.net, self.lr)
        optimizer = self.make_optimizer(groups, self.lr)
        if self.schedule is None:
            return optimizer
        if isinstance(self.schedule, Schedule):
            scheduler = self.schedule.build(optimizer, cache(self._total_steps))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        scheduler = self.schedule(optimizer)
        plan = {"scheduler": scheduler, "interval": self.schedule_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            by_class = {f"val/acc_class/{label}" for label in self.class_names}
            known = {"train/loss", "train/acc", "val/loss", *self.val_metrics} - {"val/by_class"}
            if scheduler.monitor not in known | by_class:
                raise UserError(f"model.schedule: no metric {scheduler.monitor!r} is logged; there are {', '.join(sorted(known))}")
            plan["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": plan}


def _normalisation(channels: int, mean: list[float] | None, std: list[float] | None) -> tuple[list[float], list[float]]:
    """The given statistics, or ImageNet's: of its three colours, their mean for grey, alpha left about as it is."""
    if mean is None:
        mean = {1: [0.449], 3: IMAGENET_MEAN}.get(channels, [*IMAGENET_MEAN, *[0.5] * (channels - 3)])
    if std is None:
        std = {1: [0.226], 3: IMAGENET_STD}.get(channels, [*IMAGENET_STD, *[0.5] * (channels - 3)])
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise UserError(f"model.mean and model.std must each have {channels} numbers, one for each of data.channels, std above 0")
    return mean, std
