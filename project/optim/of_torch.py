"""Optimizers and schedulers of torch that would fail later, or overrule model.lr, are refused before the training starts."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer, SparseAdam, lr_scheduler

from project.errors import UserError


def check_gradients(optimizer: Optimizer, net: nn.Module) -> None:
    """Two optimizers fail on the gradients of some networks in their first step, with an error that does not say so.

    Raises:
        UserError: for those.
    """
    if isinstance(optimizer, SparseAdam):
        raise UserError(
            "model.optimizer: SparseAdam takes sparse gradients alone, which images do not give; choose Adam"
        )
    if isinstance(optimizer, LBFGS) and not all(parameter.is_contiguous() for parameter in net.parameters()):
        raise UserError(
            "model.optimizer: LBFGS cannot use weights in channels_last order; set model.channels_last: false"
        )


def scheduler_of_torch(make: Callable[[Optimizer], Any], optimizer: Optimizer) -> Any:
    """Build a scheduler.

    Raises:
        UserError: for wrong arguments, one without a metric to watch, or one that sets rates of its own.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        scheduler = make(optimizer)
    except Exception as error:  # of any kind, where an argument is wrong
        mend = "; project.optim.OneCycle counts them itself" if "total_steps" in str(error) else ""
        raise UserError(f"model.schedule: {' '.join(str(error).split())}{mend}") from error
    if type(scheduler) is lr_scheduler.ReduceLROnPlateau:
        raise UserError(
            "model.schedule: torch's ReduceLROnPlateau does not say which metric to watch; use project.optim.Plateau"
        )
    if rates != [group.get("initial_lr", rate) for group, rate in zip(optimizer.param_groups, rates, strict=True)]:
        raise UserError(
            f"model.schedule: torch's {type(scheduler).__name__} sets rates of its own, so model.lr and all that scales it would "
            "have no effect; use project.optim.OneCycle, or Cosine with cycles"
        )
    return scheduler
