"""How the validation images were classified, and where it goes wrong (advice A25)."""

from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning import Trainer
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from project.classifier import Batch, ImageClassifier
from project.extras.look.base import Look
from project.extras.look.gradcam import cam_layer, grad_cam
from project.extras.look.watch import evaluating


class LookAtPredictions(Look):
    """Draws from the validation, over all images and ranks: confusion matrix, accuracy by class, precision-recall,
    calibration, the worst mistakes with Grad-CAM; at the end of training, the features before the head in the
    projector.
    """

    def __init__(self, every: PositiveInt = 5, mistakes: NonNegativeInt = 16, embedding: NonNegativeInt = 500) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            mistakes: At most so many of the worst; 0 for none.
            embedding: Features of the first so many validation images are shown in the Projector tab; 0 for none.
        """
        super().__init__(every)
        self.mistakes, self.embedding = mistakes, embedding
        self._parts: list[tuple[Tensor, ...]] = []  # logits, labels, keys of each batch, until they are drawn

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: ImageClassifier, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        self._parts = self._parts if batch_idx else []
        self._parts.append((outputs["logits"].float(), batch["label"], batch["index"]))
        # Here and not at the end of the validation, where an average of the weights may have been put back already.
        if batch_idx + 1 == trainer.num_val_batches[0] and self.due(trainer):
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        if self._parts:  # stopped early
            self._look(trainer, pl_module)
        if self.writer is not None and self.embedding and pl_module.validates:
            self._project(trainer, pl_module)

    def _look(self, trainer: Trainer, model: ImageClassifier) -> None:
        parts = [torch.cat(part) for part in zip(*self._parts, strict=True)]
        self._parts = []
        if trainer.world_size > 1:
            parts = [torch.cat(gather_all_tensors(part)) for part in parts]
        if self.writer is None:
            return
        from project.extras.look import figures

        logits, labels, keys = parts  # of all ranks
        names, classes = model.class_names, len(model.class_names)
        probabilities, losses = model.task.probabilities(logits), model.task.losses(logits, labels)
        predicted = probabilities.argmax(1)
        matrix = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
        self.draw(trainer, "predictions/confusion_matrix", figures.confusion, matrix, names)
        self.draw(trainer, "predictions/accuracy_by_class", figures.per_class, matrix, names)
        self.draw(trainer, "predictions/precision_recall", figures.precision_recall, probabilities, labels, names)
        self.draw(trainer, "predictions/reliability", figures.reliability, probabilities, labels)
        error = figures.calibration_error(probabilities, labels)
        self.writer.add_scalar("val/calibration_error", error, trainer.global_step)
        wrong = (predicted != labels).nonzero()[:, 0]
        worst = wrong[losses[wrong].argsort(descending=True)][: self.mistakes]
        if len(worst):
            images = trainer.datamodule.loaded["val"].images.whole(keys[worst])["image"]
            maps = None
            with self.guarded("Grad-CAM"):
                inputs = model.normalise(images.to(model.device))
                if layer := cam_layer(model.net, inputs):
                    maps = grad_cam(model.net, layer, inputs, predicted[worst])
            true, guessed = ([names[i] for i in which[worst]] for which in (labels, predicted))
            given = images, true, guessed, losses[worst], maps
            self.draw(trainer, "predictions/worst_mistakes", figures.mistakes, *given)

    def _project(self, trainer: Trainer, model: ImageClassifier) -> None:
        """Features, names and small pictures for TensorBoard's projector."""
        from project.extras.look.sheets import colours

        val = trainer.datamodule.loaded["val"]
        with self.guarded("the projector"), torch.no_grad(), evaluating(model.net):
            batch = val.images.whole(val.index[: self.embedding])
            parts = [model.normalise(part.to(model.device)) for part in batch["image"].split(32)]
            features = torch.cat([model.net.forward_features(part).float() for part in parts])
            names = [model.class_names[label] for label in batch["label"]]
            small = nn.functional.interpolate(colours(batch["image"]), (32, 32), mode="area")
            self.writer.add_embedding(features, names, small, trainer.global_step, tag="features")
