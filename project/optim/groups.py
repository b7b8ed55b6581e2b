"""Parameter groups: which parameters share a learning rate and a weight decay (advice A20)."""

from typing import Any

from torch import nn

ParamGroup = dict[str, Any]  # name, params, lr, and whatever else the optimizer takes per group


def param_groups(net: nn.Module, lr: float) -> list[ParamGroup]:
    """The groups handed to the optimizer. Every group has a name, under which its rate is printed and logged.

    Args:
        net: The network.
        lr: The base learning rate.

    Returns:
        One group, `all`, of every parameter that is to be trained.
    """
    return [{"name": "all", "params": [p for p in net.parameters() if p.requires_grad], "lr": lr}]
