"""A batch as the network sees it, and the same images before (advice A10, A24)."""

from contextlib import ExitStack
from typing import Any

import lightning as L
from torch import Tensor, nn

from project.classifier import Batch
from project.errors import UserError
from project.extras.look.base import Look, pictures, unnoticed


class LookAtData(Look):
    """Draws a training batch with its class names: before augmentation, and as it enters the network, mixup and cutmix included."""

    def __init__(self, every: int = 5, images: int = 32) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            images: At most so many of the batch.
        """
        super().__init__(every)
        if images < 1:
            raise UserError(f"LookAtData: images must be 1 or more, not {images}")
        self.images = images
        self._hook = ExitStack()
        self._seen: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == 0 and self.due(trainer) and self.writer(trainer) is not None:
            handle = pl_module.net.register_forward_pre_hook(self._keep)
            self._hook.callback(handle.remove)

    def _keep(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self._seen:  # an optimizer such as LBFGS calls the network several times
            self._seen.append(inputs[0][: self.images].detach().clone())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._hook.close()
        if not self._seen:
            return
        from project.extras.look.figures import image_grid

        with unnoticed(pl_module.device):
            seen = (
                self._seen.pop().float() * pl_module.std + pl_module.mean
            )  # [0, 1] again, within the float's rounding
            keys = batch["index"][: self.images].tolist()
            before, labels = pictures(trainer.datamodule.loaded["train"].images, keys)
            names = [pl_module.class_names[label] for label in labels]
            mixed = [_in_words(label, pl_module.class_names) for label in outputs["labels"][: self.images]]
            self.draw(trainer, "data/1_before_augmentation", lambda: image_grid(before, names))
            self.draw(trainer, "data/2_as_the_network_sees_it", lambda: image_grid(seen, mixed))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._hook.close()
        self._seen.clear()


def _in_words(label: Tensor, class_names: list[str]) -> str:
    """The name of a label; of shares (num_classes,), as mixup and cutmix make them, the two largest."""
    if label.ndim == 0:
        return class_names[int(label)]
    (first, second), (a, b) = (each.tolist() for each in label.topk(2))
    return class_names[a] if second == 0 else f"{first:.0%} {class_names[a]}, {second:.0%} {class_names[b]}"
