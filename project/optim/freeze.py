"""Freezing: which layers do not train, and until when (advice A21)."""

from torch import nn

from project.errors import UserError
from project.optim.layers import Layer, layers
from project.optim.rates import matches


class Freeze:
    """Keeps layers as they are: their parameters, and the running statistics of their norms, which stay in eval mode."""

    def __init__(self, until: int | None = None, every: int | None = None, layers: str | None = None) -> None:
        """
        Args:
            until: Epochs for which they stay frozen, 1 or more; null for the whole run (feature extraction).
            every: Unfreeze stage by stage, from the head down: the first after `until` epochs, one more after every `every` epochs;
                null unfreezes all at once.
            layers: Regular expression for the names of the layers to freeze; null takes all but the head.
        """
        if until is not None and until < 1:
            raise UserError(
                f"model.freeze: until must be 1 or more epochs, not {until}; null freezes for the whole run"
            )
        if every is not None and every < 1:
            raise UserError(
                f"model.freeze: every must be 1 or more epochs, not {every}; null unfreezes all stages at once"
            )
        if every is not None and until is None:
            raise UserError(
                "model.freeze: every unfreezes stages one by one; it needs until, the epochs before the first"
            )
        self.until, self.every, self.pattern = until, every, layers

    def plan(self, net: nn.Module) -> dict[str, int | None]:
        """When each frozen tensor begins to train.

        Returns:
            Name of a parameter or buffer -> first epoch, counted from 0, in which it trains; None for never. What is not frozen is
            not in it.

        Raises:
            UserError: when nothing or everything would be frozen.
        """
        frozen = self._chosen(layers(net))
        stages = list(dict.fromkeys(layer.stage for layer in reversed(frozen)))  # from the head down
        plan: dict[str, int | None] = {}
        for layer in frozen:
            start = self.until
            if start is not None and self.every is not None:
                start += stages.index(layer.stage) * self.every
            plan |= dict.fromkeys(layer.tensors, start)
        return plan

    def _chosen(self, ordered: list[Layer]) -> list[Layer]:
        names = ", ".join(layer.name for layer in ordered)
        if self.pattern is None:
            chosen = ordered[:-1]
        else:
            chosen = [layer for layer in ordered if matches("model.freeze", self.pattern, layer.name)]
        if not chosen:
            reason = f"{self.pattern!r} matches no layer" if self.pattern else "this network has nothing but its head"
            raise UserError(f"model.freeze: {reason}; the layers are {names}")
        if len(chosen) == len(ordered):
            raise UserError(
                f"model.freeze: {self.pattern!r} would freeze everything, nothing could learn; the layers are {names}"
            )
        return chosen


class Freezing:
    """Keeps the frozen tensors of a network from changing.

    The training calls `apply` when it starts and at the start of every epoch, and `hold` after every `net.train()`.

    Attributes:
        trains_from: Name of a parameter or buffer of the network -> first epoch, counted from 0, in which it trains; None for
            never. What is not in it trains from the start.
    """

    def __init__(self, net: nn.Module, rule: Freeze | None) -> None:
        """
        Args:
            net: The network.
            rule: What to freeze, and until when; None freezes nothing.

        Raises:
            UserError: see Freeze.plan.
        """
        self.net = net
        self.trains_from = rule.plan(net) if rule else {}
        self._modules: list[nn.Module] = []  # that own what is frozen now
        for name, parameter in net.named_parameters():
            # What is unfrozen later keeps its gradient until DDP has wrapped the network: DDP never synchronises it otherwise.
            if self.trains_from.get(name, 0) is None:
                parameter.requires_grad_(False)

    def frozen(self, epoch: int) -> set[str]:
        """Names of the parameters and buffers that must not change in an epoch, counted from 0."""
        return {name for name, start in self.trains_from.items() if start is None or epoch < start}

    def apply(self, epoch: int) -> None:
        """Freeze what is frozen in this epoch and unfreeze the rest; call `train()` and `hold()` afterwards."""
        frozen = self.frozen(epoch)
        for name, parameter in self.net.named_parameters():
            if name in self.trains_from:
                parameter.requires_grad_(name not in frozen)
        self._modules = [self.net.get_submodule(path) for path in {name.rpartition(".")[0] for name in frozen}]

    def hold(self) -> None:
        """Put the frozen modules in eval mode, so that the running statistics of their norms do not change."""
        for module in self._modules:
            module.training = False
