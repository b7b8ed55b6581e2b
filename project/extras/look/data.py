"""A batch as the network sees it, and the same images before augmentation (advice A10, A24)."""

from typing import Any

import lightning as L
from jsonargparse.typing import PositiveInt
from torch import Tensor

from project.classifier import Batch
from project.extras.look.base import Look, pictures
from project.extras.look.watch import watch_inputs


class LookAtData(Look):
    """Draws a training batch with its class names: before augmentation, and as the network sees it, after mixup and
    cutmix too.
    """

    def __init__(self, every: PositiveInt = 5, images: PositiveInt = 32) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            images: At most so many of the batch.
        """
        super().__init__(every)
        self.images = images
        self._seen: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == 0 and self.due(trainer) and self.writer(trainer) is not None:
            self._seen = self.hooks.enter_context(watch_inputs(pl_module.net, self.images))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.hooks.close()
        if not self._seen:
            return
        from project.extras.look.figures import image_grid

        seen, names = self._seen[0].float(), pl_module.class_names
        self._seen = []
        with self.guarded(trainer, "the images"):
            keys = batch["index"][: len(seen)].tolist()
            before, labels = pictures(trainer.datamodule.loaded["train"].images, keys)
            self.draw(trainer, "data/1_before_augmentation", lambda: image_grid(before, [names[i] for i in labels]))
        images = seen * pl_module.std + pl_module.mean  # [0, 1] again, but for rounding
        mixed = [_in_words(label, names) for label in outputs["labels"][: len(seen)]]
        self.draw(trainer, "data/2_as_the_network_sees_it", lambda: image_grid(images, mixed))


def _in_words(label: Tensor, class_names: list[str]) -> str:
    """The name of a label; of shares (num_classes,), as mixup and cutmix make them, the two largest."""
    if label.ndim == 0:
        return class_names[int(label)]
    shares, classes = label.topk(2)
    pairs = zip(shares.tolist(), classes.tolist(), strict=True)
    return ", ".join(f"{share:.0%} {class_names[k]}" for share, k in pairs if share)
