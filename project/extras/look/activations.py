"""What the layers return for images that stay the same (advice A7, A25)."""

import torch
from jsonargparse.typing import PositiveInt
from lightning import Trainer
from torch import Tensor

from project.classifier import ImageClassifier
from project.extras.look.base import Look
from project.extras.look.watch import evaluating, layer_spread, leaves, map_layers, rectifiers, watch


class LookAtActivations(Look):
    """Draws for fixed images: feature maps, mean and standard deviation of each layer, the share of dead ReLUs; before
    training too.
    """

    def __init__(
        self,
        every: PositiveInt = 5,
        layers: list[str] | None = None,
        images: PositiveInt = 32,
        channels: PositiveInt = 32,
    ) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            layers: Layers of the network whose feature maps are drawn; null chooses up to four, evenly.
            images: So many validation images (else training images) give the numbers; feature maps are of the first.
            channels: At most so many feature maps of a layer.
        """
        super().__init__(every, layers)
        self.images, self.channels = images, channels
        self._fixed: Tensor | None = None
        self._drawn = -1  # the step

    def on_train_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        if trainer.ckpt_path is None:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        if self.due(trainer):
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        """After an early stop too; where the weights are averaged, of the average."""
        if trainer.global_step != self._drawn:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, model: ImageClassifier) -> None:
        if self.writer is None:
            return
        from project.extras.look import figures

        net, self._drawn = model.net, trainer.global_step
        with self.guarded("the activations"), torch.no_grad(), evaluating(net):
            if self._fixed is None:
                loaded = trainer.datamodule.loaded
                split = loaded.get("val", loaded["train"])
                self._fixed = split.images.whole(split.index[: self.images])["image"]
            with watch(net, {*leaves(net), *(self.layers or [])}) as outputs:
                model(self._fixed.to(model.device))
            relus = rectifiers(net)
            rows = layer_spread(outputs, relus)
            self.draw(trainer, "activations/spread_by_layer", figures.layer_spread, rows)
            if dead := [row.dead for row in rows if row.dead is not None]:
                self.writer.add_scalar("activations/dead_share_of_relus", sum(dead) / len(dead), trainer.global_step)
            self.draw(trainer, "activations/image", figures.image_grid, self._fixed[:1])
            for name in self.layers or map_layers(outputs, relus, 4):
                self.draw(trainer, f"activations/{name}", figures.feature_maps, outputs[name][0], self.channels)
