"""The image classifier (card C3), top to bottom: network, task, optimizer, steps, and the fused network for use."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchvision.transforms import v2

from project.errors import UserError
from project.messages import say
from project.nets.blocks import InitScheme, initialize
from project.nets.deployable import Deployable, TestTime, logits_of
from project.nets.fuse import fuse
from project.nets.normalise import Normalise
from project.nets.weights import fetch_weights, load_weights
from project.notation import MAKER, written
from project.optim import Interval, Length, PlannedRates, Schedule
from project.optim.freeze import Freeze, Freezing
from project.recipe import OptimizerCallable, Recipe, Scaling, SchedulerCallable
from project.tasks import Mean, MultiClass, Task

NetCallable = Callable[[int, int, int], nn.Module]  # (in_channels, outputs, image_size) -> network
TaskCallable = Callable[[list[str]], Task]  # class_names -> task
Batch = dict[str, Tensor]  # image (N, C, H, W), uint8 or float in [0, 1]; label, as the task has it; index int64 (N,)


class ImageClassifier(L.LightningModule):
    """Classifies images into the classes that the data module names."""

    def __init__(
        self,
        net: NetCallable,
        class_names: list[str],
        in_channels: int = 3,
        image_size: int = 32,
        resize: str = "letterbox",
        task: TaskCallable = MultiClass,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        init: InitScheme = "default",
        weights: str | None = None,
        freeze: Freeze | None = None,
        lr: float = 1e-3,
        optimizer: OptimizerCallable | None = None,
        lr_mult: dict[str, float] | None = None,
        stem_lr: float = 1.0,
        no_weight_decay: bool = False,
        schedule: Schedule | SchedulerCallable | None = None,
        schedule_interval: Interval | None = None,
        warmup: float = 0.0,
        warmup_start: float = 0.01,
        reference_batch: int | None = None,
        lr_scaling: Scaling = "none",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        tta: TestTime = "none",
        channels_last: bool = True,
        value_range: Sequence[float] = (0.0, 65535.0),
    ) -> None:
        """
        Args:
            net: Class of the network, by its path, with its arguments: project.nets.ConvNet, project.nets.ResNet...
            class_names: One name for each class, in order. The data module gives this, the next three and value_range.
            in_channels: Channels of the images.
            image_size: Pixels of a side.
            resize: How images are brought to that size; kept for whoever uses the model.
            task: Class of what is predicted, with its arguments: loss, metrics and probabilities; see project.tasks.
            mean: Mean of each channel over the training images, in [0, 1]; null: the weights', else ImageNet's.
            std: Standard deviation of each channel, likewise.
            init: First weights; default is PyTorch's own. dirac: convolutions start as the identity.
            weights: To start from: published (DEFAULT), .pt, .pth, .safetensors, checkpoint; grey then fills 3 channels
            freeze: Layers that do not train, always or until an epoch.
            lr: The learning rate, for every optimizer, at its highest; a schedule lowers it.
            optimizer: Class of the optimizer with its arguments, without lr; null takes torch.optim.AdamW.
            lr_mult: Regular expression -> factor on the learning rate where a name contains it; the first match counts.
            stem_lr: The first layer's share of the learning rate, such as 0.01; it rises by one factor a layer.
            no_weight_decay: No weight decay on norms, biases, embeddings, tokens and scales.
            schedule: How the learning rate changes: of project.optim or torch.optim.lr_scheduler.
            schedule_interval: What the schedule counts, epoch or step; null: steps for Linear, Cosine, OneCycle.
            warmup: Epochs in which the learning rate rises linearly, with a schedule of project.optim; fractions count.
            warmup_start: Where it starts, as a share of the learning rate.
            reference_batch: The batch for which lr is meant; lr_scaling follows the real one.
            lr_scaling: linear (Goyal et al. 2017, arXiv:1706.02677; for SGD): lr x images of a step / reference_batch.
                sqrt (Malladi et al. 2022, arXiv:2205.10287; for Adam, but betas and eps stay): lr and decay x its root.
            mixup: Blend pairs of images and labels (Zhang et al. 2017, arXiv:1710.09412): alpha of their shares' Beta
                distribution, 0.2 is usual; 0 for none. With cutmix too, every batch takes one of them at random.
            cutmix: Paste a part of one image into another (Yun et al. 2019, arXiv:1905.04899): alpha, 1 is usual.
            tta: flip gives the mean logits of image and mirror, but not in training; not for tasks in which the two
                differ: text, digits, road signs. Twice the work; may be set for a trained model.
            channels_last: Keep images and weights in NHWC order: faster convolutions on CPU and on tensor cores.
            value_range: What is black and white in images of more than 8 bits; kept for whoever uses the model.
        """
        super().__init__()
        if mixup < 0 or cutmix < 0:
            raise UserError(f"model.mixup and model.cutmix must be 0 or more, not {mixup} and {cutmix}")
        self.save_hyperparameters(logger=False)
        self._hparams = type(self.hparams)(written(self.hparams) | MAKER)  # as the command line gives them
        self.image_size, self.in_channels, self.resize, self.value_range = image_size, in_channels, resize, value_range
        self.class_names, self.weights, self.load_report, self.tta = list(class_names), weights, None, tta
        self.task = task(self.class_names)
        shown = 3 if weights and in_channels == 1 else in_channels
        self.net = net(shown, self.task.outputs, image_size)
        initialize(self.net, init)
        if channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)
        self.normalise = Normalise(shown, mean, std, channels_last)
        self.freezing = Freezing(self.net, freeze)
        self.recipe = Recipe(
            lr, optimizer, lr_mult, stem_lr, no_weight_decay, schedule, schedule_interval,
            warmup, warmup_start, reference_batch, lr_scaling,
        )  # fmt: skip
        mixers = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self.mixers = [mixer(alpha=alpha, num_classes=self.task.outputs) for mixer, alpha in mixers if alpha]
        self.temperature = 1.0  # divides the logits before the probabilities; export fits it, the checkpoint keeps it
        self.planned: PlannedRates | None = None  # None with a scheduler of torch
        self._length: Length | None = None
        self._new_metrics: dict[str, Tensor] = {}  # of this epoch's last validation
        self.train_loss, self.val_loss, self.test_loss = (Mean() for _ in range(3))
        self.train_metrics = self.task.train_metrics()
        self.val_metrics, self.test_metrics = map(self.task.metrics, ("val/", "test/"))
        self.train_loss.persistent(True)  # an epoch that is resumed has the loss of all its batches
        self.train_metrics.persistent(True)

    # Whether this run looks at validation images at all.
    validates = property(lambda self: bool(self.trainer.limit_val_batches and self.trainer.datamodule.splits["val"]))
    mean = property(lambda self: self.normalise.mean, doc="Of each channel in [0, 1], (1, C, 1, 1).")
    std = property(lambda self: self.normalise.std, doc="Likewise.")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float in [0, 1] -> logits (N, outputs)."""
        return logits_of(self.net, self.normalise(images), self.tta)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float in [0, 1] -> float32 probabilities (N, outputs)."""
        return self.task.probabilities(self(images).float() / self.temperature)

    def fused(self) -> Deployable:
        """A copy for use, not for training, on the CPU: batch norms folded into the layers before them (advice A6)."""
        size = (2, self.in_channels, self.image_size, self.image_size)
        example = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        net, folds = fuse(self.net, self.normalise(example.to(self.mean.device)))
        return Deployable(net, self.mean, self.std, folds=folds, tta=self.tta).eval()

    @property
    def batch(self) -> int:
        """Images of one optimizer step: of a device, times devices, times accumulation."""
        trainer = self.trainer
        if trainer.datamodule is None:  # a loader of another hand: nothing is known of it, and nothing follows it
            return self.recipe.reference_batch or 1
        return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def length(self) -> Length:
        """Of the run; known once the images are loaded."""
        if self._length is None:  # asked in every step
            total = self.trainer.estimated_stepping_batches
            in_epoch = -(-self.trainer.num_training_batches // self.trainer.accumulate_grad_batches)
            self._length = Length(None if total in (-1, float("inf")) else int(total), max(1, in_epoch))
        return self._length

    def configure_optimizers(self) -> Any:
        self._length = None
        optimizer = self.recipe.optimizer(self.net, self.batch)
        scheduler, interval = self.recipe.scheduler(optimizer, self.length)
        self.planned = scheduler if isinstance(scheduler, PlannedRates) else None
        self.watched = self.planned.plateaus if self.planned else [scheduler] if hasattr(scheduler, "monitor") else []
        for each in self.watched:
            self.check_metric("model.schedule", each.monitor)
        # `on_train_epoch_end` steps what waits for a metric: Lightning would do it after saving, with old metrics too.
        plan = {"scheduler": scheduler, "interval": interval, "reduce_on_plateau": False}
        return {"optimizer": optimizer, "lr_scheduler": plan}

    def train(self, mode: bool = True) -> "ImageClassifier":
        """As in torch, but what is frozen stays in eval mode: no running statistics move, and nothing is dropped."""
        super().train(mode)
        self.freezing.hold()
        return self

    def prepare_data(self) -> None:
        """Download published weights, in one process."""
        if self.weights and self._starts:
            fetch_weights(self.net, self.weights)

    def setup(self, stage: str) -> None:
        """Load the weights to start from, or let the network look at the training images; the task does, too."""
        if self.weights and self._starts:
            self.load_report = load_weights(self.net, self.weights, self.class_names)
            self.normalise.take(self.load_report.mean, self.load_report.std)
        if self._starts and hasattr(self.net, "prepare"):
            if hasattr(self.trainer.datamodule, "examples"):
                self.net.prepare(self.normalise(self.trainer.datamodule.examples()))
            else:
                say("advice     model.net prepares itself with images of an ImageDataModule: here it starts without")
        if stage == "fit":
            self.task.prepare(self.trainer.datamodule)

    # Whether a training starts anew: every other command has a checkpoint.
    _starts = property(lambda self: self.trainer.state.fn == "fit" and self.trainer.ckpt_path is None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["new_metrics"] = self._new_metrics

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is None or self._trainer.state.fn != "fit":  # training changes the weights it was fitted for
            self.temperature = checkpoint.get("temperature", 1.0)
            return
        self._new_metrics = checkpoint.get("new_metrics", {})
        averaged = any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks)
        if not averaged and "current_model_state" in checkpoint:
            print("The checkpoint has averaged weights, and no EMA is set: resuming from the weights themselves.")
            checkpoint["state_dict"] = checkpoint["current_model_state"]

    # Steps. Metrics are updated in each and logged once an epoch: self.log would cost more than a small network's step.

    def on_train_epoch_start(self) -> None:
        self.freezing.apply(self.current_epoch)
        self.train(self.training)

    on_train_start = on_train_epoch_start  # a run that is resumed within an epoch does not start it

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss; for callbacks the labels, as the batch has them, or (N, outputs) where images are mixed."""
        images, labels = self.normalise(batch["image"]), batch["label"]
        if self.mixers:  # drawn from torch's generator, which each step seeds anew
            mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
            images, labels = mixer(images, self.task.shares(labels))
        logits, trainer = self.net(images), self.trainer
        loss = self.task.loss(logits, labels)
        self.train_loss.update(loss.detach(), len(logits))
        self.train_metrics.update(logits.detach(), self.task.unmixed(labels))
        if (every := trainer.log_every_n_steps) and self.global_step % every == 0:
            for logger in self.loggers:
                logger.log_metrics({"train/loss_step": loss.item()}, step=self.global_step)
        # Lightning adds up means / accumulate_grad_batches, and averages over ranks, which have equally many images.
        # Also an epoch's last step shall be the mean over its images. With another loader batches count equally.
        together = trainer.accumulate_grad_batches
        first = batch_idx // together * together
        last = min(first + together, trainer.num_training_batches)
        places = getattr(getattr(trainer.train_dataloader, "batch_sampler", None), "places", None)
        share = together * len(logits) / len(places(first, last)) if places else together / (last - first)
        return {"loss": loss * share, "labels": labels}

    def on_train_epoch_end(self) -> None:
        metrics = self._log("train/", self.train_metrics.compute(), self.train_loss, self.train_metrics)
        new, self._new_metrics = self._new_metrics | metrics, {}
        if self.planned is not None:
            self.planned.observe(new)
            return
        for scheduler in self.watched:
            if scheduler.monitor in new:
                scheduler.step(new[scheduler.monitor])

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if scheduler not in self.watched:
            super().lr_scheduler_step(scheduler, metric)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """For callbacks: logits (N, outputs)."""
        return {"logits": self._evaluate(batch, self.val_loss, self.val_metrics)}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_loss, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """index (N,), and probabilities (N, outputs)."""
        return {"index": batch["index"], "probabilities": self.probabilities(batch["image"])}

    def _evaluate(self, batch: Batch, loss: Mean, metrics: MetricCollection) -> Tensor:
        logits = self(batch["image"])
        loss.update(self.task.losses(logits, batch["label"]))
        metrics.update(logits, batch["label"])
        return logits

    def on_validation_epoch_end(self) -> None:
        values = self._log("val/", self.task.scores(self.val_metrics, "val/"), self.val_loss, self.val_metrics)
        if self.trainer.validating:  # not before the training, as a check of Lightning's
            self._new_metrics = values

    def on_test_epoch_end(self) -> None:
        self._log("test/", self.task.scores(self.test_metrics, "test/"), self.test_loss, self.test_metrics)

    def _log(self, prefix: str, scores: dict[str, Tensor], loss: Mean, metrics: MetricCollection) -> dict:
        """Log over all images of all ranks: `compute` gathers them, each counted once."""
        values = {**scores, f"{prefix}loss": loss.compute()}
        self.log_dict(values)
        loss.reset()
        metrics.reset()
        return values

    def check_metric(self, key: str, name: str) -> None:
        """Raise a UserError where a setting waits for a metric that no epoch logs."""
        validated = {"val/loss", *self.task.score_names("val/")} if self.validates else set()
        known = {"train/loss", *self.train_metrics, *validated}
        if name not in known:
            some = sorted(each for each in known if "/acc_class/" not in each)
            raise UserError(f"{key}: no metric {name!r} is logged; there are {', '.join(some)}")
