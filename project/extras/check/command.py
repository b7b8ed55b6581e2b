"""The command `check`."""

from typing import Any

from project.commands import Command


def check(
    config: dict[str, Any],
    run_name: str,
    out: str | None = None,
    images: int = 2000,
    steps: int = 100,
    compare_init: bool = False,
) -> int:
    """Check images, model and training plan of a fit before it starts; exit code 1 if there is an error to fix first.

    Args:
        config: The configuration of the fit.
        run_name: Name of its first config file.
        out: Folder for the pictures; null: check/<config name> beside the runs.
        images: If there are more images, only so many are checked, evenly chosen; 100 or more.
        steps: Optimizer steps to overfit one batch in, at most.
        compare_init: Draw the standard deviation of every layer under each model.init (advice A7).
    """
    from project.extras.check.check import run

    return run(config, out or f"{config['trainer']['default_root_dir']}/check/{run_name}", images, steps, compare_init)


COMMANDS = [Command(check, needs="config")]
