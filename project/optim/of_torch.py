"""Schedulers of torch that would fail later, or override model.lr, are rejected before the training."""

from collections.abc import Callable
from typing import Any

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
        raise UserError(f"model.schedule: {' '.join(str(error).split())}") from error
    name = type(scheduler).__name__
    if type(scheduler) is lr_scheduler.ReduceLROnPlateau:
        raise UserError(f"model.schedule: torch's {name} does not name its metric; use project.optim.Plateau")
    if rates != [group.get("initial_lr", rate) for group, rate in zip(optimizer.param_groups, rates, strict=True)]:
        raise UserError(
            f"model.schedule: torch's {name} sets its own learning rates, so that model.lr would have no effect; "
            "use project.optim.OneCycle, or Cosine with cycles"
        )
    return scheduler
