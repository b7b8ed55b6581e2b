"""Parameter groups: which parameters share a learning rate and a weight decay (advice A14, A20, A23)."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from project.errors import UserError
from project.optim.layers import layers
from project.optim.rates import match_all

ParamGroup = dict[str, Any]  # name, params, lr, and whatever else the optimizer takes per group
NO_DECAY = "/no_decay"  # ends the name of a group without weight decay


def param_groups(
    net: nn.Module,
    lr: float,
    lr_mult: Mapping[str, float] | None = None,
    stem_lr: float = 1.0,
    no_weight_decay: bool = False,
    rest_lr: float | None = None,
) -> list[ParamGroup]:
    """The parameter groups of the optimizer, from the stem to the head. Each has a name, under which its lr is logged.

    Args:
        net: The network.
        lr: The base learning rate.
        lr_mult: Regular expression -> factor on the learning rate where a name contains it; the first match counts.
        stem_lr: Share of the learning rate that the first layer has, above 0 and at most 1. The head has all of it, and
            from each layer to the one below the factor is the same: stem_lr ** (1 / (layers - 1)), whatever their
            number (discriminative fine-tuning: Howard & Ruder 2018, arXiv:1801.06146, section 3.2).
        no_weight_decay: Put what `without_decay` names into groups without decay.
        rest_lr: For project.optim.Muon, its argument: what it orthogonalises then has groups of its own.

    Returns:
        Groups with name, params and lr, those without decay with weight_decay 0; frozen parameters included (A20).

    Raises:
        UserError: a value is out of range, or a pattern applies to no parameter.
    """
    lr_mult = lr_mult or {}
    for pattern, factor in lr_mult.items():
        if not factor > 0:
            raise UserError(f"model.lr_mult: the factor of {pattern!r} must be above 0, not {factor}; see model.freeze")
    if not 0 < stem_lr <= 1:
        raise UserError(f"model.stem_lr, a share of model.lr, must be above 0 and at most 1, not {stem_lr}")
    ordered, parameters = layers(net), dict(net.named_parameters())
    last = len(ordered) - 1
    spared = without_decay(net)
    # Muon is for hidden convolutions and linear layers, not the head or what decay would harm (Jordan et al. 2024), nor
    # for convolutions in groups: the filters of a depthwise one are vectors, each for its own channel.
    grouped = {f"{path}.weight" for path, module in net.named_modules() if getattr(module, "groups", 1) > 1}
    hidden = parameters.keys() - spared - grouped - {*ordered[-1].tensors}
    patterns = dict(zip(parameters, match_all("model.lr_mult", lr_mult, list(parameters)), strict=True))

    groups: dict[tuple[str, float], ParamGroup] = {}
    for depth, layer in enumerate(ordered):
        share = stem_lr ** ((last - depth) / max(1, last))
        for name in filter(parameters.__contains__, layer.tensors):  # not its buffers
            pattern = patterns[name]
            title = pattern or ("rest" if lr_mult else "all")
            if stem_lr < 1:
                title = f"{layer.name} ({pattern})" if pattern else layer.name
            group = {"name": title, "params": [], "lr": lr * share * lr_mult.get(pattern, 1.0)}
            if no_weight_decay and name in spared:
                group |= {"name": title + NO_DECAY, "weight_decay": 0.0}
            if rest_lr and name in hidden:
                group["name"] += "/muon"
            elif rest_lr:
                group |= {"lr": group["lr"] * rest_lr, "rest_lr": 1.0, "muon": False}
            groups.setdefault((group["name"], group["lr"]), group)["params"].append(parameters[name])
    return list(groups.values())


def without_decay(net: nn.Module) -> set[str]:
    """Names of the parameters that decay would harm: all but the matrices and kernels that features are multiplied by.

    So it spares every vector, what is not called weight (class tokens, position embeddings, layer scales, attention's
    temperatures), norms of any shape, nn.Embedding, and what a network lists in `no_weight_decay()`, as timm's do.
    A convention (He et al. 2019, arXiv:1812.01187, section 3.1); Loshchilov & Hutter leave it open.
    """
    # weight, in_proj_weight, weight_hh_l0, parametrizations.weight.original0
    names = {
        name for name, p in net.named_parameters() if p.ndim <= 1 or not re.search(r"weight[^.]*$|\.weight\.", name)
    }
    for path, module in net.named_modules():
        listed = [*getattr(module, "no_weight_decay", list)()]
        listed += ["weight"] * isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.Embedding)
        names |= {f"{path}.{name}".lstrip(".") for name in listed}
    return names


def group_table(groups: list[ParamGroup], trains_from: Mapping[int, int | None]) -> list[dict[str, Any]]:
    """What ran, for the record: group, parameters (their number), rate, weight_decay and trainable of each group.

    Args:
        groups: Of an optimizer.
        trains_from: id of a parameter -> first epoch in which it trains, None for never; others train from the start.
    """
    rows = []
    for group in groups:
        counts: Counter[str] = Counter()  # when they train -> number of parameters
        for parameter in group["params"]:
            start = trains_from.get(id(parameter), 0)
            counts["no" if start is None else f"from epoch {start + 1}" if start else "yes"] += parameter.numel()
        row = {
            "group": group["name"],
            "parameters": counts.total(),
            "rate": group.get("initial_lr", group["lr"]),  # a scheduler has set lr to that of the first step
            "weight_decay": group.get("weight_decay", 0.0),
            "trainable": ", ".join(f"{counts[when]:,} {when}" if len(counts) > 1 else when for when in counts),
        }
        rows.append(row)
    return rows
