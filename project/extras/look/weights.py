"""Filters, histograms of weights and gradients, the size of a step, the model's graph (advice A15, A24)."""

import warnings
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from project.extras.look.base import Look, unnoticed
from project.extras.look.watch import check_layers, evaluating, first_convolution


class LookAtWeights(Look):
    """Draws, at the last step of an epoch: the first layer's filters, histograms of weights and gradients, and the ratio of update
    to weight of each layer, |step| / |weight| (about 0.001 is usual; the CS231n notes, "Neural Networks Part 3").
    """

    def __init__(self, every: int = 5, layers: list[str] | None = None, graph: bool = True) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            layers: Histograms and ratios of these layers of the network only, with all that is in them; null for all.
            graph: Put the network's graph into TensorBoard's Graphs tab.
        """
        super().__init__(every)
        self.layers, self.graph = layers, graph
        self._before: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._drawn = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        check_layers(dict(pl_module.net.named_modules()), self.layers or [])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        writer = self.writer(trainer)
        if not self.graph or writer is None or trainer.resumed_step is not None:
            return
        size = (1, pl_module.in_channels, pl_module.image_size, pl_module.image_size)
        image = pl_module.normalise(torch.zeros(size, dtype=torch.uint8, device=pl_module.device))
        with unnoticed(pl_module.device), torch.no_grad(), evaluating(pl_module.net), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every shape that the network's code looks at
            with self.guarded(trainer, "the graph"), redirect_stdout(StringIO()):  # it prints before it raises
                writer.add_graph(pl_module.net, image)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not last or self._before or not self.due(trainer) or self.writer(trainer) is None:
            return
        moving = {name: p for name, p in self._parameters(pl_module.net).items() if p.grad is not None}
        self._before = {name: p.detach().clone() for name, p in moving.items()}
        self._gradients = {name: p.grad.detach().clone() for name, p in moving.items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        before, gradients = self._before, self._gradients
        self._before, self._gradients = {}, {}
        writer = self.writer(trainer)
        if not before or writer is None:
            return
        step = trainer.global_step
        with unnoticed(pl_module.device):
            now = self._parameters(pl_module.net)
            for name, weight in before.items():
                size = float(weight.float().norm())
                if weight.ndim > 1 and size > 0:  # of weights; biases and norms start at 0 or are few
                    ratio = float((now[name].detach().float() - weight.float()).norm()) / size
                    writer.add_scalar(f"update_ratio/{name}", ratio, step)
            for kind, tensors in (("weights", {name: now[name].detach() for name in before}), ("gradients", gradients)):
                for name, tensor in tensors.items():
                    finite = tensor[tensor.isfinite()].float()  # TensorBoard's histogram takes no others
                    if len(finite):
                        writer.add_histogram(f"{kind}/{name}", finite.cpu(), step)
                    if len(finite) < tensor.numel():
                        self.say(trainer, f"leaves out {kind} that are not finite")
            self._draw_filters(trainer, pl_module.net)
            self._drawn = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._drawn and not trainer.fast_dev_run and self.writer(trainer) is not None:
            self.say(trainer, "drew nothing, because the training ended inside its first epoch")

    def _draw_filters(self, trainer: L.Trainer, net: nn.Module) -> None:
        from project.extras.look.figures import filters

        convolution = first_convolution(net)
        if convolution is None:
            self.say(trainer, "leaves out the filters: the network has no convolution")
        else:
            self.draw(trainer, "weights/filters_of_the_first_layer", lambda: filters(convolution.weight))

    def _parameters(self, net: nn.Module) -> dict[str, nn.Parameter]:
        """Those that are looked at, by name."""
        named = dict(net.named_parameters())
        if self.layers is None:
            return named
        return {
            name: p for name, p in named.items() if any(f"{name}.".startswith(f"{layer}.") for layer in self.layers)
        }
