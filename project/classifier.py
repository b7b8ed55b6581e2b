"""The image classifier: network, loss, metrics and steps; how it is trained is its base class's (card C3)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassStatScores
from torchvision.transforms import v2

from project.errors import UserError
from project.nets.blocks import InitScheme, initialize
from project.nets.weights import LoadReport, fetch_weights, load_weights
from project.recipe import Recipe

if TYPE_CHECKING:
    from project.nets.deployable import Deployable

NetCallable = Callable[[int, int, int], nn.Module]  # (in_channels, num_classes, image_size) -> network
Batch = dict[str, Tensor]  # image (N, C, H, W), uint8 or float in [0, 1]; label int64 (N,); index int64 (N,)

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PER_CLASS_LIMIT = 100  # classes whose accuracies are logged one by one; ImageNet's thousand curves would help nobody


class ImageClassifier(Recipe):
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
        weights: str | None = None,
        label_smoothing: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        channels_last: bool = True,
        **recipe: Any,
    ) -> None:
        """
        Args:
            net: Class of the network, by its path, with its arguments: project.nets.ConvNet, project.nets.TorchvisionModel...
            class_names: One name for each output, in order. The data module gives them.
            in_channels: Channels of the images. The data module gives them.
            image_size: Pixels of a side. The data module gives it.
            resize: How images were brought to that size; kept for whoever uses the model. The data module gives it.
            mean: Mean of each channel over the training images, in [0, 1], for the normalisation; null takes that of the weights,
                else ImageNet's.
            std: Standard deviation of each channel, likewise.
            init: First weights (A7): default (PyTorch's own), xavier_normal, xavier_uniform, kaiming_normal, kaiming_uniform.
            weights: Weights to start from, as far as they fit (A21, A22): the name of published ones for networks of torchvision
                and timm, such as DEFAULT; a state dict, .pt, .pth or .safetensors; or a checkpoint of ours.
            label_smoothing: Share of the target spread over all classes (Szegedy et al. 2015, arXiv:1512.00567), 0 to below 1.
            class_weights: Weight of each class in the loss; balanced makes it inversely proportional to the class's images.
            mixup: Blend pairs of images and their labels (Zhang et al. 2017, arXiv:1710.09412): alpha of the Beta distribution of
                the shares, 0.2 is usual; 0 for none. With cutmix too, every batch takes one of them at random.
            cutmix: Paste a part of one image into another, labels by area (Yun et al. 2019, arXiv:1905.04899): alpha, 1 is usual;
                0 for none.
            channels_last: Keep images and weights in NHWC order: faster convolutions on CPU and on tensor cores.
            recipe: How it is trained, see project.recipe.Recipe.
        """
        super().__init__(**recipe)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"model.label_smoothing must be at least 0 and below 1, not {label_smoothing}")
        if mixup < 0 or cutmix < 0:
            raise UserError(f"model.mixup and model.cutmix must be 0 or more, not {mixup} and {cutmix}")
        self.save_hyperparameters(logger=False)
        self.class_names, self.num_classes = list(class_names), len(class_names)
        self.image_size, self.in_channels, self.resize = image_size, in_channels, resize
        self.label_smoothing, self.channels_last = label_smoothing, channels_last

        self.net = net(in_channels, self.num_classes, image_size)
        initialize(self.net, init)
        if channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)
        self.weights, self.load_report = weights, None
        self._own_statistics = mean is not None, std is not None
        mean, std = _normalisation(in_channels, mean, std)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.balance_loss = class_weights == "balanced"
        if isinstance(class_weights, list) and (len(class_weights) != self.num_classes or min(class_weights) <= 0):
            raise UserError(
                f"model.class_weights must be {self.num_classes} numbers above 0, one for each class, or balanced"
            )
        share = class_weights if isinstance(class_weights, list) else [1.0] * self.num_classes
        self.register_buffer("class_weights", torch.tensor(share))

        mixers = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self.mixers = [mixer(alpha=alpha, num_classes=self.num_classes) for mixer, alpha in mixers if alpha]
        self.temperature = (
            1.0  # the logits are divided by it before the softmax; export fits it and keeps it in the checkpoint
        )
        self._new_metrics: dict[str, float] = {}  # of this epoch so far
        self.train_loss, self.train_acc = MeanMetric(), self._accuracy()
        for metric in (self.train_loss, self.train_acc):
            metric.persistent(True)  # an epoch that is gone on with has the loss of all its batches
        self.val_loss, self.val_metrics = MeanMetric(), self._metrics("val/")
        self.test_loss, self.test_metrics = MeanMetric(), self._metrics("test/")
        self.plan_freeze()

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

    def metric_names(self) -> set[str]:
        by_class = {f"val/acc_class/{label}" for label in self.class_names}
        names = ({"train/loss", "train/acc", "val/loss", *self.val_metrics} - {"val/by_class"}) | by_class
        return names if self.validates else {name for name in names if not name.startswith("val/")}

    @property
    def _new(self) -> bool:
        """Whether a training starts from the beginning, which takes `weights`; every other command has a checkpoint."""
        return self.trainer.state.fn == "fit" and getattr(self.trainer, "resumed_step", None) is None

    def prepare_data(self) -> None:
        """Download published weights, in one process."""
        if self.weights is not None and self._new:
            fetch_weights(self.net, self.weights)

    def setup(self, stage: str) -> None:
        """Load the weights to start from, and take the class counts from the data module where the loss is to be balanced."""
        super().setup(stage)
        if self.weights is not None and self._new:
            self.load_report = self._load(self.weights)
        if stage == "fit" and self.balance_loss:
            data = self.trainer.datamodule
            if data.sampler == "balanced":
                raise UserError(
                    "model.class_weights: balanced and data.sampler: balanced correct the imbalance twice; choose one"
                )
            counts = torch.tensor(data.class_counts, dtype=torch.float32).clamp(min=1)
            self.class_weights.copy_(counts.sum() / (self.num_classes * counts))  # mean weight of an image: 1

    def _load(self, weights: str) -> LoadReport:
        """Weights that fit, with their normalisation unless the configuration has its own."""
        report = load_weights(self.net, weights, self.class_names)
        for buffer, own, values in zip(
            (self.mean, self.std), self._own_statistics, (report.mean, report.std), strict=True
        ):
            if values is not None and not own and len(values) == self.in_channels:
                buffer.copy_(torch.tensor(values).view(1, -1, 1, 1))
        return report

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
        return (self(images).float() / self.temperature).softmax(dim=1)

    def fused(self) -> "Deployable":
        """A copy for use, not for training, on the CPU: batch norms folded into the layers before them (advice A6).

        Returns:
            An ordinary module, images (N, C, H, W), uint8 or float in [0, 1] -> logits (N, num_classes). Its `folds` say what
            became of each batch norm, its `net` is the network alone.
        """
        from project.nets.deployable import Deployable  # here, because training needs none of it
        from project.nets.fuse import fuse

        size = (2, self.in_channels, self.image_size, self.image_size)
        example = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        net, folds = fuse(self.net, self.normalise(example.to(self.mean.device)))
        return Deployable(net, self.mean, self.std, folds=folds).eval()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if (
            self._trainer is None or self._trainer.state.fn != "fit"
        ):  # a fit that goes on changes the weights for which it was fitted
            self.temperature = checkpoint.get("temperature", 1.0)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with labels (N,), or shares of each class (N, num_classes); with class weights, the weighted mean."""
        weight = self.class_weights.float()  # like the logits, whatever the precision of the run
        options = {"weight": weight, "label_smoothing": self.label_smoothing}
        if labels.ndim == 1:
            return nn.functional.cross_entropy(logits.float(), labels, **options)
        # For shares torch's mean forgets the weights: mixing would change the size of the loss, and so of the steps.
        total = nn.functional.cross_entropy(logits.float(), labels.float(), reduction="sum", **options)
        return total / (labels * weight).sum()

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss; for callbacks the labels, (N,), or (N, num_classes) where images are mixed."""
        images, labels = self.normalise(batch["image"]), batch["label"]
        if self.mixers:  # drawn from torch's generator, which each step seeds anew
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            images, labels = mixer(images, labels)  # labels: shares, (N, num_classes)
        logits = self.net(images)
        loss = self.loss(logits, labels)
        # Metrics are updated here and logged once an epoch: self.log in every step would cost more than a small network's step.
        self.train_loss.update(loss.detach(), len(logits))
        self.train_acc.update(logits.detach(), labels.argmax(1) if labels.ndim == 2 else labels)
        self.note_rates()
        if (every := self.trainer.log_every_n_steps) and self.global_step % every == 0:
            for logger in self.loggers:
                logger.log_metrics({"train/loss_step": loss.item()}, step=self.global_step)
        return {"loss": loss, "labels": labels}

    def on_train_epoch_end(self) -> None:
        metrics = {"train/loss": self.train_loss.compute(), "train/acc": self.train_acc.compute()}
        self.log_dict(metrics)
        self.train_loss.reset()
        self.train_acc.reset()
        self.end_epoch(self._new_metrics | {name: float(value) for name, value in metrics.items()})
        self._new_metrics = {}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """For callbacks: logits (N, num_classes)."""
        return {"logits": self._evaluate(batch, self.val_loss, self.val_metrics)}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_loss, self.test_metrics)

    def _evaluate(self, batch: Batch, loss: MeanMetric, metrics: MetricCollection) -> Tensor:
        logits = self(batch["image"])
        loss.update(self.loss(logits, batch["label"]), len(logits))
        metrics.update(logits, batch["label"])
        return logits

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
        values[f"{name}/loss"] = loss.compute()
        self.log_dict(values)
        if self.trainer.state.fn == "fit":
            self._new_metrics = {key: float(value) for key, value in values.items()}
        loss.reset()
        metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """index (N,), and probabilities (N, num_classes)."""
        return {"index": batch["index"], "probabilities": self.probabilities(batch["image"])}


def _normalisation(channels: int, mean: list[float] | None, std: list[float] | None) -> tuple[list[float], list[float]]:
    """The given statistics, or ImageNet's: of its three colours, their mean for grey, alpha left about as it is."""
    if mean is None:
        mean = {1: [0.449], 3: IMAGENET_MEAN}.get(channels, [*IMAGENET_MEAN, *[0.5] * (channels - 3)])
    if std is None:
        std = {1: [0.226], 3: IMAGENET_STD}.get(channels, [*IMAGENET_STD, *[0.5] * (channels - 3)])
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise UserError(
            f"model.mean and model.std must each have {channels} numbers, one for each of data.channels, std above 0"
        )
    return mean, std
