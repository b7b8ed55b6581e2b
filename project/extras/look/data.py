"""A batch as the network sees it, and the same images before augmentation (advice A10)."""

from contextlib import ExitStack
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning import Trainer
from torch import Tensor

from project.classifier import Batch, ImageClassifier
from project.extras.look.base import Look
from project.extras.look.watch import watch


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
        self._hooks = ExitStack()
        self._seen: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: ImageClassifier, batch: Batch, batch_idx: int) -> None:
        if batch_idx == 0 and self.due(trainer) and self.writer is not None:
            self._seen = self._hooks.enter_context(watch(pl_module.net, [""], inputs=True))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: ImageClassifier, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._hooks.close()
        if not self._seen:
            return
        from project.extras.look.figures import image_grid

        with self.guarded("the batch"):
            seen = self._seen.pop("")[: self.images] * pl_module.std + pl_module.mean  # [0, 1] again
            before = trainer.datamodule.loaded["train"].images.whole(batch["index"][: self.images])
            names, classes = pl_module.class_names, before["label"]
            self.draw(trainer, "data/1_before_augmentation", image_grid, before["image"], _titles(classes, names))
            mixed = _titles(outputs["labels"][: self.images], names)
            self.draw(trainer, "data/2_as_the_network_sees_it", image_grid, seen, mixed)

    def on_exception(self, trainer: Trainer, pl_module: ImageClassifier, exception: BaseException) -> None:
        self._hooks.close()


def _titles(labels: Tensor, class_names: list[str]) -> list[str]:
    """The names of labels (N,); of shares (N, classes), as mixup and cutmix make them, the two largest."""
    if labels.ndim == 1:
        return [class_names[i] for i in labels]
    pairs = zip(*(each.tolist() for each in labels.topk(2)), strict=True)
    return [", ".join(f"{a:.0%} {class_names[i]}" for a, i in zip(*pair, strict=True) if a) for pair in pairs]
