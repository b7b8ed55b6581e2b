"""The command `check`."""

from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt

from project.commands import Command


def check(
    config: dict[str, Any],
    run_name: str,
    out: str | None = None,
    images: PositiveInt = 2000,
    steps: PositiveInt = 100,
    compare_init: bool = False,
) -> int:
    """Check images, model and training plan of a fit before it starts; exit code 1 if there is an error to fix first.

    Args:
        config: The configuration of the fit.
        run_name: Name of its first config file.
        out: Folder for the pictures; null: check/<config name> beside the runs.
        images: If there are more images, only so many are checked, evenly chosen.
        steps: Optimizer steps to overfit one batch in, at most.
        compare_init: Draw the standard deviation of every layer under each model.init (advice A7).
    """
    from project.extras.check.check import run

    folder = Path(out or f"{config['trainer']['default_root_dir']}/check/{run_name}")
    return run(config, folder, images, steps, compare_init)


COMMANDS = [Command(check, needs="config")]
