"""What is settled before the command line is parsed: which checkpoint, and in which order settings overrule each other."""

from pathlib import Path
from typing import Any

import torch
import yaml

from project.errors import UserError
from project.run.paths import find_checkpoint

EXPORTED = (".onnx", ".pt2", ".safetensors")
CONFIG_FLAGS = ("--config", "-c")
GROUPS = ("--data", "--model", "--trainer")  # --trainer configs/trainer/ddp.yaml: a config for one part
FROM_MODEL = {"class_names": "class_names", "image_size": "image_size", "in_channels": "channels", "resize": "resize"}

TRAINING_ONLY = (
    "checkpoint",
    "data.augment",
    "data.sampler",
    "data.random_resized_crop",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
)
SPLIT_ONLY = tuple(
    f"data.{name}"
    for name in ("source", "val_size", "test_size", "split_seed", "folds", "fold", "test_folds", "test_fold")
)
FRESH = ("lr_find", "batch_find")  # commands that, like fit, take no checkpoint to begin with
NO_EFFECT = {  # options that a command would ignore
    "validate": (*TRAINING_ONLY, "data.on_seen_image"),
    "test": TRAINING_ONLY,
    "predict": (*TRAINING_ONLY, *SPLIT_ONLY, "data.on_seen_image", "data.on_bad_image"),
    "export": (*TRAINING_ONLY, "data.on_seen_image", "trainer.accelerator", "trainer.devices", "trainer.precision"),
}


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Divide the command line into config files and single options, so that options overrule files wherever they stand."""
    files: list[str] = []
    options: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag = argument.split("=", 1)[0]
        if flag not in CONFIG_FLAGS + GROUPS:
            options.append(argument)
        elif "=" in argument:
            files.append(argument)
        else:
            files += [argument, *([value] if (value := next(rest, None)) is not None else [])]
    return files, class_first(options)


def class_first(options: list[str]) -> list[str]:
    """Put the choice of a class before the options of that class, which would otherwise be those of the class before it."""
    units: list[list[str]] = []  # an option with its values
    for argument in options:
        if argument.startswith("--") or not units:
            units.append([argument])
        else:
            units[-1].append(argument)
    ordered: list[list[str]] = []
    for unit in units:
        name = unit[0].split("=", 1)[0]
        place = next((i for i, earlier in enumerate(ordered) if earlier[0].startswith(f"{name}.")), len(ordered))
        ordered.insert(place, unit)
    return [argument for unit in ordered for argument in unit]


def option(name: str, files: list[str], options: list[str]) -> str | None:
    """The value of a top-level option, from the command line or else from the config files."""
    for position in range(len(options) - 1, -1, -1):
        flag, joined, value = options[position].partition("=")
        if flag == f"--{name}":
            return value or None if joined else next(iter(options[position + 1 :]), None)
    for flag, path in reversed(_given_files(files)):
        key = name if flag in CONFIG_FLAGS else name.removeprefix(f"{flag[2:]}.")
        if (flag in CONFIG_FLAGS or key != name) and (value := _look_up(path, key)) is not None:
            return str(value)
    return None


def given(name: str, arguments: list[str]) -> Path | None:
    """The config file that sets a key, if one does."""
    for flag, path in _given_files(split_arguments(arguments)[0]):
        key = name if flag in CONFIG_FLAGS else name.removeprefix(f"{flag[2:]}.")
        if (flag in CONFIG_FLAGS or key != name) and path.is_file() and _look_up(path, key) is not None:
            return path
    return None


def _look_up(path: Path, name: str) -> Any:
    """The value of a key in a config file, or in the part of it that lies in a file of its own (data: data/digits.yaml)."""
    value = read_config(path)
    for key in name.split("."):
        if isinstance(value, str) and (part := path.parent / value).is_file():
            value = read_config(part)
        value = value.get(key) if isinstance(value, dict) else None
    return value


def config_files(files: list[str]) -> list[Path]:
    """The paths given with --config."""
    return [path for flag, path in _given_files(files) if flag in CONFIG_FLAGS]


def _given_files(files: list[str]) -> list[tuple[str, Path]]:
    """(flag, path) of every config file, in the order given."""
    found, rest = [], iter(files)
    for file in rest:
        flag, joined, path = file.partition("=")
        if path := path if joined else next(rest, ""):
            found.append((flag, Path(path).expanduser()))
    return found


def read_config(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: when it is missing or no YAML.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config: {path} cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", error)).split())
        where = f"line {mark.line + 1}" if mark else "the file"
        raise UserError(f"--config: {path} is no valid YAML at {where}: {problem}") from error
    if not isinstance(config, dict):
        raise UserError(f"--config: {path} must hold keys and values, such as `data: {{batch_size: 32}}`")
    return config


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, its tensors left on disk until they are used.

    Raises:
        UserError: when it is none.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # torch has a different one for each kind of damage
        raise UserError(f"ckpt_path: {path} is no checkpoint, or a damaged one") from error
    if not isinstance(checkpoint, dict) or not {"config", "hyper_parameters"} <= set(checkpoint):
        raise UserError(
            f"ckpt_path: {path} was not written by python -m project fit, so it does not say what model it holds"
        )
    return checkpoint


def load_exported(path: Path, command: str) -> dict[str, Any]:
    """What takes a checkpoint's place where an exported file is given.

    Raises:
        UserError: when the command needs more than the file has, or it is none of ours.
    """
    if command != "predict":
        raise UserError(
            f"ckpt_path: {path} is an exported model, which can only predict; {command} needs the checkpoint it was made from"
        )
    from project.extras.export.metadata import read_metadata  # here, because training needs none of it

    metadata = read_metadata(path)
    hyper = {model: metadata[data if data == "channels" else model] for model, data in FROM_MODEL.items()}
    own = {data: hyper[model] for model, data in FROM_MODEL.items()}
    return {"hyper_parameters": hyper, "exported": {"data": {"root": None, **own}, "model": {"path": str(path)}}}


def checkpoint_config(checkpoint: dict[str, Any], command: str) -> dict[str, Any]:
    """The settings that a command takes from a checkpoint: all of them to go on training, else the model and its data.

    The model's classes, image size, channels and resizing come from the checkpoint, never from the images at hand.
    """
    config = yaml.safe_load(checkpoint["config"])
    hyper = checkpoint["hyper_parameters"]
    config["data"] |= {data: hyper[model] for model, data in FROM_MODEL.items()}
    if command == "fit":
        return config
    if command == "predict":  # other images than the ones it was trained on
        config["data"] |= {"root": None}
    return {"data": config["data"], "model": config["model"]}


def arrange(command: str, arguments: list[str]) -> tuple[list[str], Path | None, dict[str, Any]]:
    """Order the arguments of a command: checkpoint < config files < command line, with the checkpoint's alias resolved.

    Args:
        command: fit, validate, test or predict.
        arguments: The command line after the command.

    Returns:
        The new arguments, the checkpoint's path, and the checkpoint; None and {} without one.

    Raises:
        UserError: when a checkpoint is needed and not given, or not to be had.
    """
    files, options = split_arguments(arguments)
    if any(argument in ("-h", "--help") for argument in arguments):
        return arguments, None, {}
    for argument in options:
        key = argument.split("=", 1)[0].removeprefix("--").rstrip("+")
        if argument.startswith("--") and any(
            key == name or key.startswith(f"{name}.") for name in NO_EFFECT.get(command, ())
        ):
            raise UserError(f"{key} has no effect on {command}: leave it out")
    if command == "check":
        return [*files, *options], None, {}
    name = option("ckpt_path", files, options)
    if name is None or name in ("null", "None"):
        if command not in ("fit", *FRESH):
            raise UserError(
                f"{command} needs a trained model: --ckpt_path best, --ckpt_path last, or the path of a checkpoint"
            )
        return [*files, *options], None, {}
    if command in FRESH:
        raise UserError(
            f"ckpt_path: {command} measures a training from its start, as the configuration has it; leave it out"
        )
    root = option("trainer.default_root_dir", files, options) or "runs"
    path = find_checkpoint(name, Path(root).expanduser())
    checkpoint = load_checkpoint(path) if path.suffix not in EXPORTED else load_exported(path, command)
    for model, data in FROM_MODEL.items():
        asked, own = option(f"data.{data}", files, options), checkpoint["hyper_parameters"][model]
        if asked is not None and yaml.safe_load(asked) not in (own, None):
            raise UserError(
                f"data.{data} is the model's own and cannot be changed: the checkpoint says {own}; leave it out"
            )
    config = checkpoint["exported"] if "exported" in checkpoint else checkpoint_config(checkpoint, command)
    inline = yaml.safe_dump(
        config, default_flow_style=True, width=1_000_000_000, sort_keys=False
    )  # of patterns, the first counts
    return ["--config", inline, *files, *options, f"--ckpt_path={path}"], path, checkpoint
