"""Parameter groups: which parameters share a learning rate and a weight decay (advice A14, A20, A23)."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from project.errors import UserError
from project.optim.layers import layers
from project.optim.rates import matches

ParamGroup = dict[str, Any]  # name, params, lr, and whatever else the optimizer takes per group
NO_DECAY = "/no_decay"  # ends the name of a group without weight decay


def param_groups(
    net: nn.Module,
    lr: float,
    lr_mult: Mapping[str, float] | None = None,
    layer_decay: float = 1.0,
    no_weight_decay: bool = False,
) -> list[ParamGroup]:
    """The groups handed to the optimizer, from the stem to the head. Every group has a name, under which its rate is logged.

    Args:
        net: The network.
        lr: The base learning rate.
        lr_mult: Ordered regular expression -> factor on the rate of the parameters in whose name it is found; the first that
            matches counts, 1 where none does.
        layer_decay: Factor on the rate from each layer to the one below it, above 0 and at most 1; the head has the full rate
            (Howard & Ruder 2018, arXiv:1801.06146, section 3.2).
        no_weight_decay: Put norms and biases, and what the network itself names in `no_weight_decay()`, into groups without decay.

    Returns:
        Groups with name, params and lr; those without decay also with weight_decay 0. Frozen parameters are in them too, so that an
        unfreeze changes no group (A20).

    Raises:
        UserError: for a value out of range, or a pattern that decides no parameter.
    """
    lr_mult = dict(lr_mult or {})
    for pattern, factor in lr_mult.items():
        if not factor > 0:
            raise UserError(
                f"model.lr_mult: the factor of {pattern!r} must be above 0, not {factor}; to freeze, use model.freeze"
            )
    if not 0 < layer_decay <= 1:
        raise UserError(f"model.layer_decay must be above 0 and at most 1, not {layer_decay}")
    ordered = layers(net)
    parameters = dict(net.named_parameters())
    spared = without_decay(net) if no_weight_decay else set()

    groups: dict[tuple[str, float, bool], ParamGroup] = {}
    used = set()
    for place, layer in enumerate(ordered):
        share = layer_decay ** (len(ordered) - 1 - place)
        for name in layer.tensors:
            if name not in parameters:
                continue  # a buffer
            pattern = next((pattern for pattern in lr_mult if matches("model.lr_mult", pattern, name)), None)
            used.add(pattern)
            title = _title(layer.name if layer_decay < 1 else None, pattern, bool(lr_mult))
            rate = lr * share * lr_mult.get(pattern, 1.0)
            key = (title, rate, name in spared)
            if key not in groups:
                groups[key] = {"name": title + (NO_DECAY if name in spared else ""), "params": [], "lr": rate}
                if name in spared:
                    groups[key]["weight_decay"] = 0.0
            groups[key]["params"].append(parameters[name])
    for pattern in lr_mult:
        if pattern not in used:
            reason = _why_unused(pattern, list(parameters))
            raise UserError(f"model.lr_mult: {pattern!r} {reason}")
    return list(groups.values())


def _title(layer: str | None, pattern: str | None, patterns: bool) -> str:
    if layer is None:
        return pattern or ("rest" if patterns else "all")
    return f"{layer} ({pattern})" if pattern else layer


def _why_unused(pattern: str, names: list[str]) -> str:
    if any(matches("model.lr_mult", pattern, name) for name in names):
        return "decides nothing: patterns before it match all of its parameters; the first match counts, so put it before them"
    return f"matches no parameter; they have names such as {names[0]} and {names[-1]}"


def without_decay(net: nn.Module) -> set[str]:
    """Names of the parameters that decay would harm: norms and biases (every vector), and what a timm network names itself.

    Loshchilov & Hutter leave it open; the habit comes from He et al. 2019, arXiv:1812.01187, section 3.1.
    """
    names = {name for name, parameter in net.named_parameters() if parameter.ndim <= 1}
    for path, module in net.named_modules():
        own: Callable[[], set[str]] | None = getattr(module, "no_weight_decay", None)
        if callable(own):
            names |= {f"{path}.{name}" if path else name for name in own()}
    return names


def group_table(groups: list[ParamGroup], trains_from: Mapping[int, int | None]) -> list[dict[str, Any]]:
    """What ran, for the record: one row for each group.

    Args:
        groups: Of an optimizer.
        trains_from: id of a parameter -> epoch from which it trains, None for never; parameters that are not in it train from 0.

    Returns:
        Rows of group, parameters (their number), rate, weight_decay, trainable (yes, no, from epoch 2; epochs counted from 1).
    """
    rows = []
    for group in groups:
        starts: dict[int | None, int] = {}  # epoch -> number of parameters that train from it on
        for parameter in group["params"]:
            start = trains_from.get(id(parameter), 0)
            starts[start] = starts.get(start, 0) + parameter.numel()
        rows.append(
            {
                "group": group["name"],
                "parameters": sum(starts.values()),
                "rate": group.get("initial_lr", group["lr"]),  # a scheduler has already moved lr to its first step's
                "weight_decay": group.get("weight_decay", 0.0),
                "trainable": _trainable(starts),
            }
        )
    return rows


def _trainable(starts: dict[int | None, int]) -> str:
    words = {None: "no", 0: "yes"}
    found = []
    for start in sorted(starts, key=lambda start: (start is None, start)):
        word = words.get(start, f"from epoch {(start or 0) + 1}")
        found.append(word if len(starts) == 1 else f"{starts[start]:,} {word}")
    return ", ".join(found)
