"""Filters, histograms of weights and gradients, the size of a step, the model's graph (advice A15, A24)."""

import warnings
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning import Trainer
from torch import Tensor

from project.classifier import ImageClassifier
from project.extras.look.base import Look
from project.extras.look.watch import evaluating, first_convolution


class LookAtWeights(Look):
    """Draws, at the last step of an epoch: the first layer's filters, histograms of weights and gradients, and the
    ratio of update to weight of each layer, |step| / |weight| (about 0.001 is usual; the CS231n notes, "Neural Networks
    Part 3").
    """

    def __init__(self, every: PositiveInt = 5, layers: list[str] | None = None, graph: bool = True) -> None:
        """
        Args:
            every: Epochs from one picture to the next; the first and the last planned epoch always have one.
            layers: Histograms and ratios of these layers of the network only, with all that is in them; null for all.
            graph: Put the network's graph into TensorBoard's Graphs tab.
        """
        super().__init__(every, layers)
        self.graph = graph
        self._before: dict[str, tuple[Tensor, Tensor]] = {}  # weight and gradient

    def on_train_start(self, trainer: Trainer, pl_module: ImageClassifier) -> None:
        if not self.graph or self.writer is None or trainer.ckpt_path is not None:
            return
        size, net = pl_module.image_size, pl_module.net
        image = pl_module.normalise(torch.zeros(1, pl_module.in_channels, size, size, device=pl_module.device))
        with self.guarded("the graph"), evaluating(net), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every shape that the network's code looks at
            self.writer.add_graph(net, image)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: ImageClassifier, *_: Any) -> None:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last and self.due(trainer) and self.writer is not None:
            within = "" if self.layers is None else tuple(f"{layer}." for layer in self.layers)
            self._before = {
                name: (weight.detach().clone(), weight.grad.clone())
                for name, weight in pl_module.net.named_parameters()
                if name.startswith(within) and weight.grad is not None
            }

    def on_train_batch_end(self, trainer: Trainer, pl_module: ImageClassifier, *_: Any) -> None:
        if not self._before:
            return
        from project.extras.look.figures import filters

        step = trainer.global_step
        for name, (before, gradient) in self._before.items():
            weight = pl_module.net.get_parameter(name).detach()
            if weight.ndim > 1:  # biases and norms start at 0 or are few
                ratio = (weight.float() - before.float()).norm() / before.float().norm()
                self.writer.add_scalar(f"update_ratio/{name}", ratio, step)
            for kind, values in (("weights", weight), ("gradients", gradient)):
                if values.isfinite().all():
                    self.writer.add_histogram(f"{kind}/{name}", values.float().cpu(), step)
                else:
                    self.say(f"leaves out {kind} that are not finite")
        self._before = {}
        convolution = first_convolution(pl_module.net)
        if convolution is not None:
            self.draw(trainer, "weights/filters_of_the_first_layer", filters, convolution.weight)
