"""Freezing: which layers do not train, and until when (advice A21)."""

from jsonargparse.typing import PositiveInt
from torch import nn

from project.errors import UserError
from project.optim.layers import Layer, layers
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
        stages = list(dict.fromkeys(layer.stage for layer in reversed(frozen)))  # from the head down
        plan: dict[str, int | None] = {}
        for layer in frozen:
            start = self.until and self.until + stages.index(layer.stage) * (self.every or 0)
            plan |= dict.fromkeys(layer.tensors, start)
        return plan


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
        self._layers = layers(net) if rule else []
        self._still: list[nn.Module] = []
        for name, parameter in net.named_parameters():
            # What is unfrozen later keeps its gradient until DDP has wrapped the network, or DDP never synchronises it.
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
        self._still = _still(self.net, self._layers, frozen) if frozen else []

    def hold(self) -> None:
        """Put what is frozen in eval mode: the statistics of its norms stay, and an image has one set of features."""
        for module in self._still:
            module.training = False


def _still(net: nn.Module, ordered: list[Layer], frozen: set[str]) -> list[nn.Module]:
    """The modules that belong to what is frozen, with the dropout and the stochastic depth inside.

    Dropout right before a trained head belongs to the head, even where the backbone holds it: as its own module, or in
    timm as a `drop_rate` of the backbone.
    """
    tensors = {id(value) for name, value in (*net.named_parameters(), *net.named_buffers()) if name in frozen}
    inside = tuple(f"{layer.name}." for layer in ordered if frozen.issuperset(layer.tensors))
    head = ordered[-1].name
    still, empty, before = [], [], True  # those without tensors wait for the next ones; what came before is frozen
    for path, module in (*net.named_modules(), (head, net.get_submodule(head))):
        in_layer = f"{path}.".startswith(inside)
        below, own = ({*map(id, (*module.parameters(deep), *module.buffers(deep)))} for deep in (True, False))
        if not below:
            empty.append((module, in_layer))
        elif below <= tensors and (in_layer or not getattr(module, "drop_rate", 0)):
            still.append(module)
        if own:
            between, before = before and own <= tensors, own <= tensors
            heads = nn.modules.dropout._DropoutNd if f"{path}.".startswith(f"{head}.") else ()
            still += [each for each, held in empty if between or (held and not isinstance(each, heads))]
            empty = []
    return still
