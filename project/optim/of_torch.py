"""Torch's schedulers, of which some are rejected before the training; a step of its optimizers on a given state."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer, lr_scheduler

from project.errors import UserError


def scheduler_of_torch(make: Callable[[Optimizer], Any], optimizer: Optimizer) -> Any:
    """Build a scheduler.

    Raises:
        UserError: for wrong arguments, one without a metric to monitor, or one that sets its own learning rates.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        scheduler = make(optimizer)
    except Exception as error:  # of any kind, where an argument is wrong
        raise UserError(f"model.schedule: {error}") from error
    if type(scheduler) is lr_scheduler.ReduceLROnPlateau:
        raise UserError("model.schedule: torch's ReduceLROnPlateau names no metric; use project.optim.Plateau")
    if rates != [group.get("initial_lr", rate) for group, rate in zip(optimizer.param_groups, rates, strict=True)]:
        name = type(scheduler).__name__
        raise UserError(f"model.schedule: torch's {name} overrides model.lr; use project.optim.OneCycle or Cosine")
    return scheduler


def step_of_torch(optimizer: Optimizer, state: dict[Tensor, Any]) -> None:
    """One step of an optimizer with the state of its parameters that another optimizer keeps, and saves.

    Making one for each step takes 20 microseconds.
    """
    optimizer.state = state
    optimizer.step()
