"""Freezing: which layers do not train, and until when (advice A21)."""

import sys

from jsonargparse.typing import PositiveInt
from torch import nn

from project.errors import UserError
from project.optim.layers import inside, layers
from project.optim.rates import match_all


class Freeze:
    """Freezes layers: parameters and running statistics; in eval mode, without dropout and stochastic depth."""

    def __init__(
        self, until: PositiveInt | None = None, every: PositiveInt | None = None, layers: str | None = None
    ) -> None:
        """
        Args:
            until: Epochs for which they stay frozen, 1 or more; null for the whole run (feature extraction).
            every: Epochs from one stage to the next, from the head down, the first after `until`; null: all at once.
            layers: Regular expression for the names of the layers to freeze; null takes all but the head.
        """
        if every is not None and until is None:
            raise UserError("model.freeze: every needs until, the epochs before the first stage is unfrozen")
        self.until, self.every, self.pattern = until, every, layers

    def plan(self, net: nn.Module) -> dict[str, int | None]:
        """When each frozen tensor starts to train.

        Returns:
            Name of a parameter or buffer -> first epoch, counted from 0, in which it trains; None for never.

        Raises:
            UserError: nothing or everything would be frozen.
        """
        ordered = layers(net)
        names = [layer.name for layer in ordered]
        chosen = match_all("model.freeze: layers", [self.pattern], names) if self.pattern else [*names[:-1], None]
        frozen = [layer for layer, match in zip(ordered, chosen, strict=True) if match]
        if not 0 < len(frozen) < len(ordered):
            what = "everything" if frozen else "nothing"
            raise UserError(f"model.freeze: it would freeze {what}; the layers are {', '.join(names)}")
        stages = dict.fromkeys(layer.stage for layer in reversed(frozen))  # from the head down
        starts = {stage: self.until and self.until + i * (self.every or 0) for i, stage in enumerate(stages)}
        return {name: starts[layer.stage] for layer in frozen for name in layer.tensors}


class Freezing:
    """Keeps the frozen tensors of a network from changing.

    The training calls `apply` when it starts and at the start of every epoch, and `hold` after every `net.train()`.

    Attributes:
        trains_from: As Freeze.plan gives it. What is not in it trains from the start.
    """

    def __init__(self, net: nn.Module, rule: Freeze | None) -> None:
        """Freezes nothing where the rule is None.

        Raises:
            UserError: see Freeze.plan.
        """
        self.net = net
        self.trains_from = rule.plan(net) if rule else {}
        # What is unfrozen later keeps its gradient until DDP has wrapped the network, or DDP never synchronises it.
        self.apply(sys.maxsize)

    def frozen(self, epoch: int) -> set[str]:
        """Names of the parameters and buffers that must not change in an epoch, counted from 0."""
        return {name for name, start in self.trains_from.items() if start is None or epoch < start}

    def apply(self, epoch: int) -> None:
        """Freeze what is frozen in this epoch and unfreeze the rest; call `train()` and `hold()` afterwards."""
        frozen = self.frozen(epoch)
        for name, parameter in self.net.named_parameters():
            if name in self.trains_from:
                parameter.requires_grad_(name not in frozen)
        self._still: list[nn.Module] = []
        if not frozen:
            return
        # What has no tensors belongs to the layer that it is in, or that comes before it; dropout right before the head
        # belongs to the head. Modules that hold several layers are left alone: timm's, too, drop out before the head.
        ordered = layers(self.net)
        names = [layer.name for layer in ordered]
        places = {name.rpartition(".")[0]: layer for layer in ordered for name in (f"{layer.name}.", *layer.tensors)}
        layer, dropout = ordered[0], None
        for path, module in self.net.named_modules():
            layer = places.get(path, layer)
            if layer is not ordered[-1]:
                if path in places:
                    dropout = None
                elif isinstance(module, nn.modules.dropout._DropoutNd):
                    dropout = module
                if not inside(path, names) and frozen.issuperset(layer.tensors):
                    self._still.append(module)
        if dropout in self._still:
            self._still.remove(dropout)

    def hold(self) -> None:
        """Put what is frozen in eval mode: the statistics of its norms stay, and an image has one set of features."""
        for module in self._still:
            module.training = False
