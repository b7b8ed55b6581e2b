"""How the validation images were classified, and where it goes wrong (advice A25)."""

from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from project.classifier import Batch
from project.errors import UserError
from project.extras.look.base import Look, pictures, unnoticed

SPRITE = 32  # pixels of a side in the projector


class LookAtPredictions(Look):
    """Draws from the ordinary validation, over all its images and ranks: confusion matrix, accuracy by class, precision-recall,
    calibration, the worst mistakes with Grad-CAM; at the end of training, the features before the head in the projector.
    """

    def __init__(self, every: int = 5, mistakes: int = 16, embedding: int = 500) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            mistakes: At most so many of the worst; 0 for none.
            embedding: Of the first so many validation images the features are shown in the Projector tab; 0 for none.
        """
        super().__init__(every)
        for name, value in {"mistakes": mistakes, "embedding": embedding}.items():
            if value < 0:
                raise UserError(f"LookAtPredictions: {name} must be 0 or more, not {value}")
        self.mistakes, self.embedding = mistakes, embedding
        self._hook = ExitStack()
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []  # logits, labels, keys of each batch
        self._features: list[Tensor] = []
        self._next = 1  # the epoch after the last validated one, the first is 1
        self._waiting = False  # the last validation is not drawn: it is, should the training end here

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not trainer.fast_dev_run and "val" not in trainer.datamodule.loaded:
            self.say(trainer, "draws nothing, because there are no validation images")
        elif not trainer.fast_dev_run and not pl_module.validates:
            self.say(trainer, "draws nothing, because this training never validates")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._next = trainer.current_epoch + 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        if trainer.world_size > len(trainer.datamodule.loaded["val"].index):
            self.say(trainer, "draws nothing, because there are fewer validation images than processes")
            return
        self._parts, self._features, self._waiting = [], [], True
        if self.embedding and self.writer(trainer) is not None:
            head = getattr(pl_module.net, "head", None)
            if hasattr(pl_module.net, "forward_features") and isinstance(head, nn.Module):
                self._hook.callback(head.register_forward_pre_hook(self._keep).remove)
            else:
                self.say(trainer, "leaves out the projector: it takes a network with forward_features and head")

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        missing = self.embedding - sum(map(len, self._features))
        if missing > 0:
            self._features.append(inputs[0].detach()[:missing].flatten(1).float().cpu())

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._waiting:
            return
        self._parts.append((outputs["logits"].detach().float().cpu(), batch["label"].cpu(), batch["index"].cpu()))
        # Here and not at the end of the validation, where an average of the weights may have been put back already.
        if batch_idx + 1 == trainer.num_val_batches[dataloader_idx]:
            self._hook.close()
            # An epoch that was due may have had no validation: trainer.check_val_every_n_epoch.
            since, self._next = self._next, trainer.current_epoch + 2
            if self.due(trainer, min(since, trainer.current_epoch + 1)):
                self._waiting = False
                self._look(trainer, pl_module, cam=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._waiting:  # stopped early
            self._waiting = False
            averaged = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)
            if averaged:
                self.say(
                    trainer, "leaves out Grad-CAM at the end: the weights have been averaged since they were validated"
                )
            self._look(trainer, pl_module, cam=not averaged)
        if self._features and self._parts:
            self._project(trainer, pl_module)
        self._parts, self._features = [], []

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._hook.close()
        self._waiting = False

    def _look(self, trainer: L.Trainer, model: Any, cam: bool) -> None:
        if not self._parts:
            return
        parts = [torch.cat(part) for part in zip(*self._parts, strict=True)]
        if trainer.world_size > 1:
            parts = [torch.cat(gather_all_tensors(part.to(model.device))).cpu() for part in parts]
        writer = self.writer(trainer)
        if writer is None:
            return
        from project.extras.look import figures

        logits, labels, keys = (
            part.clone() for part in parts
        )  # of all ranks; clones, because these are inference tensors
        with torch.inference_mode(False), unnoticed(model.device):
            probabilities, predicted = logits.softmax(1), logits.argmax(1)
            classes, names = logits.shape[1], model.class_names
            matrix = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
            counts = matrix.sum(1)
            self.draw(trainer, "predictions/confusion_matrix", lambda: figures.confusion(matrix, names))
            self.draw(
                trainer,
                "predictions/accuracy_by_class",
                lambda: figures.per_class(matrix.diag() / counts, counts, names),
            )
            self.draw(
                trainer, "predictions/precision_recall", lambda: figures.precision_recall(probabilities, labels, names)
            )
            self.draw(trainer, "predictions/reliability", lambda: figures.reliability(probabilities, labels))
            writer.add_scalar(
                "val/calibration_error", figures.calibration_error(probabilities, labels), trainer.global_step
            )
            losses = nn.functional.cross_entropy(logits, labels, reduction="none").nan_to_num(torch.inf)
            losses[predicted == labels] = -1
            worst = losses.argsort(descending=True, stable=True)[: self.mistakes]
            worst = worst[losses[worst] >= 0]
            if len(worst):
                self._draw_mistakes(trainer, model, keys[worst], labels[worst], predicted[worst], losses[worst], cam)
            elif self.mistakes:
                self.say(trainer, "leaves out the worst mistakes where there are none")

    def _draw_mistakes(
        self, trainer: L.Trainer, model: Any, keys: Tensor, labels: Tensor, predicted: Tensor, losses: Tensor, cam: bool
    ) -> None:
        from project.extras.look import figures
        from project.extras.look.gradcam import cam_layer, grad_cam

        images, _ = pictures(trainer.datamodule.loaded["val"].images, keys.tolist())
        maps = None
        if cam:
            inputs = images.to(model.device)
            with self.guarded(trainer, "Grad-CAM"):
                layer = cam_layer(model.net, model.normalise(inputs[:1]))
                if layer is None:
                    self.say(trainer, "leaves out Grad-CAM: no convolution gives the last feature maps")
                else:
                    maps = grad_cam(model.net, layer, model.normalise(inputs), predicted).cpu()
        true, guessed = ([model.class_names[i] for i in which.tolist()] for which in (labels, predicted))
        self.draw(trainer, "predictions/worst_mistakes", lambda: figures.mistakes(images, true, guessed, losses, maps))

    def _project(self, trainer: L.Trainer, model: Any) -> None:
        """Features, names and small pictures for TensorBoard's projector; of rank zero's share of the images."""
        writer = self.writer(trainer)
        features = torch.cat(self._features)
        keys = torch.cat([keys for _, _, keys in self._parts])[: len(features)]
        if writer is None or len(features) != len(keys):
            return
        with torch.inference_mode(False), unnoticed(model.device), self.guarded(trainer, "the projector"):
            images, labels = pictures(trainer.datamodule.loaded["val"].images, keys.tolist())
            small = nn.functional.interpolate(images.float() / 255, (min(SPRITE, images.shape[-1]),) * 2, mode="area")
            small = small[:, :3].expand(-1, 3, -1, -1)
            names = [" ".join(model.class_names[label].split()) for label in labels]  # a tab would begin a new column
            writer.add_embedding(features.clone(), names, small, trainer.global_step, tag="features")
