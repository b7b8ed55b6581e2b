"""The commands of this room: `lr_find` and `batch_find`."""

from typing import Any

from jsonargparse.typing import PositiveFloat, PositiveInt

from project.commands import Command


def lr_find(
    config: dict[str, Any],
    run_name: str,
    out: str = "lr.yaml",
    steps: PositiveInt = 100,
    min_lr: PositiveFloat = 1e-6,
    max_lr: PositiveFloat = 10.0,
) -> int:
    """Find a learning rate with a range test: train while the learning rate rises, and look where the loss blows up.

    Args:
        out: YAML file to write; the curve goes to a .png beside it.
        steps: Optimizer steps, 10 or more.
        min_lr: model.lr of the first step.
        max_lr: model.lr of the last step, at least 10 times min_lr.
    """
    from project.extras.tune.lr_find import find

    return find(config, out, steps, min_lr, max_lr)


def batch_find(
    config: dict[str, Any],
    run_name: str,
    out: str = "batch.yaml",
    min_batch: PositiveInt = 8,
    max_batch: PositiveInt = 1024,
    steps: PositiveInt = 5,
    memory_limit: PositiveFloat | None = None,
) -> int:
    """Measure speed and memory of each batch size, and recommend one.

    Args:
        out: YAML file to write.
        min_batch: Smallest batch size; it is doubled up to max_batch.
        max_batch: Largest batch size.
        steps: Optimizer steps to time, after one that warms up.
        memory_limit: GB that a batch size may take on a CPU (Linux); null: as much as there is.
    """
    from project.extras.tune.batch_find import find

    return find(config, out, min_batch, max_batch, steps, memory_limit)


COMMANDS = [Command(lr_find, needs="config"), Command(batch_find, needs="config")]
