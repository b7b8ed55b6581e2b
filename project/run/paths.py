"""Where runs live: runs/<config name>/version_N, and which checkpoint `best` and `last` mean."""

import json
from pathlib import Path
from typing import Any

from project.errors import UserError
from project.files import written_whole

LATEST = "latest"  # a file that holds the newest run's path; a link would make TensorBoard show that run twice
CHECKPOINTS = "checkpoints"
ALIASES = ("best", "last")


def new_run(root: Path, name: str) -> Path:
    """Make the next root/name/version_N. Two processes at once get two numbers, since mkdir succeeds only once."""
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"trainer.default_root_dir: no folder can be made at {folder} ({error.strerror})") from error
    number = 1 + max((int(p.name[8:]) for p in folder.glob("version_*") if p.name[8:].isdigit()), default=-1)
    while True:
        run = folder / f"version_{number}"
        try:
            run.mkdir()
        except FileExistsError:
            number += 1
        else:
            return run


def mark_latest(run: Path, root: Path) -> None:
    """Make `best` and `last` mean this run's."""
    root.mkdir(parents=True, exist_ok=True)
    run, top = run.resolve(), root.resolve()
    with written_whole(root / LATEST) as draft:  # relative: runs may be moved
        draft.write_text(f"{run.relative_to(top).as_posix() if run.is_relative_to(top) else run}\n")


def latest_run(root: Path) -> Path:
    """The run that the last fit made or resumed.

    Raises:
        UserError: when there is none.
    """
    pointer = root / LATEST
    if not pointer.is_file():
        raise UserError(
            f"there is no run in {root} yet: train one with python -m project fit --config configs/digits.yaml"
        )
    run = root / pointer.read_text().strip()
    if not run.is_dir():
        raise UserError(f"{pointer} points to {run}, which is gone: give the path of a checkpoint with --ckpt_path")
    return run


def find_checkpoint(name: str, root: Path) -> Path:
    """The checkpoint file that `best`, `last` or a path means.

    Raises:
        UserError: when there is no such file.
    """
    if name not in ALIASES:
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"ckpt_path: there is no file {path}; give a checkpoint file, best, or last")
        return path
    run = latest_run(root)
    path = run / CHECKPOINTS / f"{name}.ckpt"
    if path.is_file():
        return path
    if name == "best" and (run / CHECKPOINTS / "last.ckpt").is_file():
        raise UserError(
            f"ckpt_path: the run {run} was never validated, so it has no best checkpoint; use --ckpt_path last"
        )
    raise UserError(f"ckpt_path: the run {run} has no checkpoint yet; it ended before its first epoch did")


def short_name(checkpoint: Path) -> str:
    """What --ckpt_path needs to mean this checkpoint of the newest run: its alias in the usual folder, else its path."""
    return checkpoint.stem if checkpoint.parts[:1] == ("runs",) else str(checkpoint)


def run_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint lies in, or None when it has been moved out of one."""
    folder = checkpoint.absolute().parent
    run = folder.parent
    if folder.name != CHECKPOINTS or not (run / "config.yaml").is_file():
        return None
    return run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run


def read(path: Path) -> dict[str, Any]:
    """A JSON file; {} when there is none, or a damaged one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested configuration -> {"model.lr": 0.1, ...}: plain values, without what is null."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat
