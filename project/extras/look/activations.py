"""What the layers give for images that stay the same (advice A7, A24)."""

import lightning as L
import torch
from torch import Tensor, nn

from project.errors import UserError
from project.extras.look.base import Look, pictures, unnoticed
from project.extras.look.watch import check_layers, evaluating, layer_spread, leaves, rectifiers, watch

PASSING = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)  # give what they get
CHOSEN = 4  # layers whose feature maps are drawn when none are named


class LookAtActivations(Look):
    """Draws for fixed images: feature maps, mean and spread of each layer, the share of dead ReLUs; before training first."""

    def __init__(self, every: int = 5, layers: list[str] | None = None, images: int = 32, channels: int = 32) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            layers: Layers of the network whose feature maps are drawn; null chooses four, from the first to the last.
            images: The first so many validation images (else training images) give the numbers; feature maps are of the first.
            channels: At most so many feature maps of a layer.
        """
        super().__init__(every)
        for name, value in {"images": images, "channels": channels}.items():
            if value < 1:
                raise UserError(f"LookAtActivations: {name} must be 1 or more, not {value}")
        self.layers, self.images, self.channels = layers, images, channels
        self._fixed: Tensor | None = None
        self._drawn = -1  # the step

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        check_layers(dict(pl_module.net.named_modules()), self.layers or [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:
            return
        if self.writer(trainer) is not None and trainer.resumed_step is None:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.due(trainer) and self.writer(trainer) is not None:
            self._look(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After an early stop too; with an average of the weights, of the average."""
        if self.writer(trainer) is not None and trainer.global_step != self._drawn:
            self._look(trainer, pl_module)

    def _look(self, trainer: L.Trainer, model: L.LightningModule) -> None:
        from project.extras.look import figures

        self._drawn = trainer.global_step
        with unnoticed(model.device), torch.no_grad(), evaluating(model):
            if self._fixed is None:
                loaded = trainer.datamodule.loaded
                split = loaded["val"] if "val" in loaded else loaded["train"]
                self._fixed = pictures(split.images, split.index[: self.images])[0]
            passing = {name for name, layer in model.net.named_modules() if isinstance(layer, PASSING)}
            names = [name for name in leaves(model.net) if name not in passing]
            with watch(model.net, dict.fromkeys([*names, *(self.layers or [])])) as outputs:
                model(self._fixed.to(model.device))
            relus = rectifiers(model.net)
            rows = layer_spread({name: outputs[name] for name in outputs if name in names}, relus)
        self.draw(trainer, "activations/spread_by_layer", lambda: figures.layer_spread(rows))
        dead = [row.dead for row in rows if row.dead is not None]
        if dead:
            self.writer(trainer).add_scalar(
                "activations/dead_share_of_relus", sum(dead) / len(dead), trainer.global_step
            )
        else:
            self.say(trainer, "leaves out the share of dead ReLUs: the network has none")
        self.draw(trainer, "activations/image", lambda: figures.image_grid(self._fixed[:1]))
        for name in self._chosen(trainer, outputs, relus):
            maps = outputs[name][0]
            self.draw(trainer, f"activations/{name}", lambda maps=maps: figures.feature_maps(maps, limit=self.channels))

    def _chosen(self, trainer: L.Trainer, outputs: dict[str, Tensor], relus: set[str]) -> list[str]:
        """The layers whose feature maps are drawn."""
        shaped = [
            name for name, output in outputs.items() if output.ndim == 4 and output.shape[-2] * output.shape[-1] > 1
        ]
        if self.layers is not None:
            for name in self.layers:
                if name not in shaped:
                    sizes = tuple(outputs[name].shape) if name in outputs else "no tensor"
                    known = ", ".join(shaped[:5]) or "none"
                    raise UserError(
                        f"LookAtActivations.layers: {name} gives no feature maps but {sizes}; layers that do: {known}"
                    )
            return self.layers
        choice = [name for name in shaped if name in relus] or shaped
        if not choice:
            self.say(trainer, "leaves out the feature maps: no layer gives any")
        return (
            choice
            if len(choice) <= CHOSEN
            else [choice[round(i * (len(choice) - 1) / (CHOSEN - 1))] for i in range(CHOSEN)]
        )
