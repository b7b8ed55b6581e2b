"""How the validation images were classified, and where it goes wrong (advice A25)."""

from functools import partial
from typing import Any

import lightning as L
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from project.classifier import Batch
from project.extras.look.base import Look, pictures
from project.extras.look.watch import watch_inputs

SPRITE = 32  # pixels of a side in the projector


class LookAtPredictions(Look):
    """Draws from the ordinary validation, over all its images and ranks: confusion matrix, accuracy by class,
    precision-recall, calibration, the worst mistakes with Grad-CAM; at the end of training, the features before the
    head in the projector.
    """

    def __init__(
        self, every: PositiveInt = 5, mistakes: NonNegativeInt = 16, embedding: NonNegativeInt = 500
    ) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            mistakes: At most so many of the worst; 0 for none.
            embedding: Features of the first so many validation images are shown in the Projector tab; 0 for none.
        """
        super().__init__(every)
        self.mistakes, self.embedding = mistakes, embedding
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []  # logits, labels, keys of each batch
        self._features: list[Tensor] = []
        self._waiting = False  # the last validation is not drawn: it is, should the training end here

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._waiting = trainer.state.fn == "fit" and not trainer.sanity_checking
        self._parts, self._features = [], []
        head = getattr(pl_module.net, "head", None)
        if self._waiting and isinstance(head, nn.Module) and self.writer(trainer) is not None:
            self._features = self.hooks.enter_context(watch_inputs(head, self.embedding))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._waiting:
            return
        self._parts.append((outputs["logits"].float().cpu(), batch["label"].cpu(), batch["index"].cpu()))
        # Here and not at the end of the validation, where an average of the weights may have been put back already.
        if batch_idx + 1 == trainer.num_val_batches[dataloader_idx]:
            self.hooks.close()
            if self.due(trainer):
                self._waiting = False
                self._look(trainer, pl_module, cam=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._waiting and self._parts:  # stopped early; the weights may not be those that were validated
            self._look(trainer, pl_module, cam=False)
        if self._features:
            self._project(trainer, pl_module)

    def _look(self, trainer: L.Trainer, model: Any, cam: bool) -> None:
        parts = [torch.cat(part).to(model.device) for part in zip(*self._parts, strict=True)]
        if trainer.world_size > 1:
            parts = [torch.cat(gather_all_tensors(part)) for part in parts]
        if (writer := self.writer(trainer)) is None:
            return
        from project.extras.look import figures

        logits, labels, keys = parts  # of all ranks
        names, classes = model.class_names, len(model.class_names)
        probabilities, losses = model.task.probabilities(logits), model.task.losses(logits, labels)
        predicted = probabilities.argmax(1)
        matrix = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
        for name, make in {
            "confusion_matrix": partial(figures.confusion, matrix, names),
            "accuracy_by_class": partial(figures.per_class, matrix, names),
            "precision_recall": partial(figures.precision_recall, probabilities, labels, names),
            "reliability": partial(figures.reliability, probabilities, labels),
        }.items():
            self.draw(trainer, f"predictions/{name}", make)
        with self.guarded(trainer, "val/calibration_error"):
            error = figures.calibration_error(probabilities, labels)
            writer.add_scalar("val/calibration_error", error, trainer.global_step)
        wrong = (predicted != labels).nonzero()[:, 0]
        worst = wrong[losses[wrong].nan_to_num(torch.inf).argsort(descending=True, stable=True)[: self.mistakes]]
        if len(worst):
            images, _ = pictures(trainer.datamodule.loaded["val"].images, keys[worst].tolist())
            maps = self._explain(trainer, model, images, predicted[worst]) if cam else None
            true, guessed = ([names[i] for i in which[worst].tolist()] for which in (labels, predicted))
            make = partial(figures.mistakes, images, true, guessed, losses[worst], maps)
            self.draw(trainer, "predictions/worst_mistakes", make)

    def _explain(self, trainer: L.Trainer, model: Any, images: Tensor, classes: Tensor) -> Tensor | None:
        from project.extras.look.gradcam import cam_layer, grad_cam

        with self.guarded(trainer, "Grad-CAM"):
            inputs = model.normalise(images.to(model.device))
            layer = cam_layer(model.net, inputs)
            return None if layer is None else grad_cam(model.net, layer, inputs, classes).cpu()

    def _project(self, trainer: L.Trainer, model: Any) -> None:
        """Features, names and small pictures for TensorBoard's projector; of rank zero's share of the images."""
        from project.extras.look.sheets import colours

        with self.guarded(trainer, "the projector"):
            features = torch.cat(self._features).flatten(1).float()
            keys = torch.cat([keys for *_, keys in self._parts])[: len(features)]
            images, labels = pictures(trainer.datamodule.loaded["val"].images, keys.tolist())
            small = nn.functional.interpolate(colours(images), (min(SPRITE, images.shape[-1]),) * 2, mode="area")
            names = [model.class_names[label] for label in labels]
            self.writer(trainer).add_embedding(features, names, small, trainer.global_step, tag="features")
