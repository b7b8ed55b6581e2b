"""Where runs are: runs/<config name>/version_N, and which checkpoint `best` and `last` mean."""

import json
from pathlib import Path
from typing import Any

from project.errors import UserError
from project.files import written_whole

LATEST = "latest"  # a file that holds the newest run's path; a link would make TensorBoard show that run twice
CHECKPOINTS = "checkpoints"


def new_run(root: Path, name: str) -> Path:
    """Make the next root/name/version_N. Two processes at once get two numbers, since mkdir succeeds only once."""
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"trainer.default_root_dir: {folder} cannot be made ({error.strerror})") from error
    number = 1 + max((int(path.name[8:]) for path in folder.glob("version_*") if path.name[8:].isdigit()), default=-1)
    while True:
        try:
            (run := folder / f"version_{number}").mkdir()
            return run
        except FileExistsError:
            number += 1


def mark_latest(run: Path) -> None:
    """Make `best` and `last` mean this run's."""
    run = run.absolute()
    with written_whole(run.parent.parent / LATEST) as draft:
        draft.write_text(f"{run.parent.name}/{run.name}\n")  # relative: runs may be moved


def latest_run(root: Path) -> Path:
    """The run that the last fit made or resumed; UserError when there is none."""
    pointer = root / LATEST
    if not pointer.is_file():
        raise UserError(f"no run in {root} yet: train one with python -m project fit --config configs/digits.yaml")
    run = root / pointer.read_text().strip()
    if not run.is_dir():
        raise UserError(f"{pointer} points to {run}, which is gone: give the path of a checkpoint with --ckpt_path")
    return run


def find_checkpoint(name: str, root: Path) -> Path:
    """The checkpoint file that `best`, `last` or a path means; UserError when there is none."""
    path = latest_run(root) / CHECKPOINTS / f"{name}.ckpt" if name in ("best", "last") else Path(name)
    if not path.is_file():
        raise UserError(f"ckpt_path: {path} is not a file; give one, last, or best (of a run that was validated)")
    return path


def short_name(checkpoint: Path) -> str:
    """The shortest --ckpt_path for a checkpoint of the newest run: best or last in the usual folder, else its path."""
    return checkpoint.stem if checkpoint.parts[:1] == ("runs",) else str(checkpoint)


def run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint belongs to; None when it has been moved out of one."""
    folder = checkpoint.absolute().parent
    run = folder.parent
    if folder.name != CHECKPOINTS or not (run / "config.yaml").is_file():
        return None
    return run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run


def read(path: Path) -> dict[str, Any]:
    """A JSON file; {} when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration -> {"model.lr": 0.1, ...}: plain values, without those that are null."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str)) else str(value)
    return flat
