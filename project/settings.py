"""What is settled before the command line is parsed: which checkpoint, and which setting overrules which."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from project.commands import Command, Opener, units
from project.errors import UserError
from project.notation import load
from project.run.paths import find_checkpoint

FILES = ("config", "data", "model", "trainer")  # --trainer configs/trainer/ddp.yaml: a config file for one part
LINKS = {  # model key -> data key: the model follows the data, but a trained model rules any data
    "class_names": "class_names",
    "image_size": "image_size",
    "in_channels": "channels",
    "resize": "resize",
    "value_range": "value_range",
}


@dataclass
class Arguments:
    """A command line, read before it is parsed: its config files in order, and its options with their words."""

    files: list[tuple[str, Path]]  # (config, data, model or trainer; path)
    options: list[list[str]]  # ["--model.lr", "0.1"] or ["--model.lr=0.1"]

    @classmethod
    def read(cls, words: list[str], switches: set[str] = frozenset()) -> "Arguments":
        """Divide the words after the command into files and options; a switch means true where no value follows."""
        files, options = [], []
        for unit in units(words):
            name, *values = *unit[0].split("=", 1), *unit[1:]
            name = "--config" if name == "-c" else name
            if name[2:] in FILES and values:
                files.append((name[2:], Path(values[0])))
            elif name[2:] in switches and not values:
                options.append([f"{name}=true"])
            else:
                # The choice of a class goes before its arguments, which would otherwise be those of the class before.
                place = next((i for i, each in enumerate(options) if each[0].startswith(f"{name}.")), len(options))
                options.insert(place, unit)
        return cls(files, options)

    def words(self) -> list[str]:
        """For the parser: files first, so that options overrule them wherever they stand."""
        return [f"--{flag}={path}" for flag, path in self.files] + [word for unit in self.options for word in unit]

    def value(self, key: str) -> Any:
        """Of one key: from the options, else from the files; None where it is not given."""
        for unit in reversed(self.options):
            flag, joined, value = unit[0].partition("=")
            if flag == f"--{key}":
                return load(value if joined else " ".join(unit[1:]))
        part, _, rest = key.partition(".")
        for flag, path in reversed(self.files):
            found = _look_up(path, key if flag == "config" else rest) if flag in ("config", part) else None
            if found is not None:
                return found
        return None


def _look_up(path: Path, key: str) -> Any:
    """The value of a key in a config file, or in the part of it that lies in a file of its own (data: data/x.yaml)."""
    value = read_config(path)
    for name in key.split("."):
        if isinstance(value, str) and (part := path.parent / value).is_file():
            value = read_config(part)
        value = value.get(name) if isinstance(value, dict) else None
    return value


def read_config(path: Path) -> dict[str, Any]:
    """The content of a YAML file; a UserError when it is missing or is not valid YAML."""
    try:
        config = load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"config file {path} cannot be read ({reason})") from error
    except yaml.YAMLError as error:
        raise UserError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise UserError(f"config file {path} must hold keys and values, such as `data: {{batch_size: 32}}`")
    return config


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, its tensors left on disk until they are used; a UserError for anything else."""
    try:
        checkpoint = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except Exception as error:  # torch has a different one for each kind of damage
        raise UserError(f"ckpt_path: {path} is not a checkpoint, or it is damaged") from error
    if not isinstance(checkpoint, dict) or not {"config", "hyper_parameters"} <= set(checkpoint):
        raise UserError(f"ckpt_path: {path} was not written by this project's fit: it does not say what model it holds")
    checkpoint["hyper_parameters"].setdefault("value_range", [0.0, 65535.0])  # of before there was the key
    return checkpoint


def checkpoint_config(checkpoint: dict[str, Any], command: str) -> dict[str, Any]:
    """The settings that a command takes from a checkpoint: all of them to resume training, else the model and its data.

    The model's classes, image size, channels and resizing come from the checkpoint, never from the images at hand.
    """
    config = yaml.safe_load(checkpoint["config"])
    config["data"] |= {data: checkpoint["hyper_parameters"][model] for model, data in LINKS.items()}
    trainer = config["trainer"]
    if not trainer.get("precision") and not trainer.get("plugins"):
        trainer["precision"] = "32-true"  # of before there was `auto`
    if command == "fit":
        return config
    if command == "predict":  # other images than the ones it was trained on
        config["data"]["root"] = None
    same = {"precision", "limit_val_batches"} if command == "validate" else {"precision"}  # for the same score
    config["trainer"] = {name: trainer[name] for name in same if trainer.get(name)}
    return {name: config[name] for name in ("classifier", "data", "model", "trainer") if name in config}


@dataclass
class Loaded:
    """What a command loads, and the settings that it brings; `path` is None where it loads nothing."""

    path: Path | None = None
    content: dict[str, Any] = field(default_factory=dict)  # of the checkpoint, or of what takes its place
    config: dict[str, Any] = field(default_factory=dict)
    opened: bool = False  # by an Opener: not a checkpoint


def find_loaded(command: Command, arguments: Arguments, openers: list[Opener]) -> Loaded:
    """The checkpoint that a command is given, or a file in its place.

    Raises:
        UserError: when it is needed and not given, or cannot be opened, or a setting contradicts it.
    """
    option = command.options.get("ckpt_path")
    name = arguments.value("ckpt_path") if option else None
    if name is None:
        if option is None or option.default is not option.empty:
            return Loaded()
        raise UserError(f"{command.name} needs a trained model: --ckpt_path best, --ckpt_path last, or a path")
    path = find_checkpoint(str(name), Path(arguments.value("trainer.default_root_dir") or "runs"))
    opener = next((each for each in openers if path.suffix in each.endings), None)
    if opener is None:
        content = load_checkpoint(path)
        config = checkpoint_config(content, command.name)
    elif command.name in opener.commands:
        content = opener.read(path)
        config = {"classifier": opener.model, **content["config"]}
    else:
        known = " and ".join(opener.commands)
        raise UserError(f"ckpt_path: {path} can only {known}; {command.name} needs a checkpoint")
    for model, data in LINKS.items():
        asked, own = arguments.value(f"data.{data}"), content["hyper_parameters"][model]
        if asked not in (None, own):
            raise UserError(f"data.{data} belongs to the model and cannot be changed: it is {own}; leave it out")
    return Loaded(path, content, config, opener is not None)


def arrange(command: Command, words: list[str], openers: list[Opener]) -> tuple[Arguments, list[str], Loaded]:
    """Order the words after a command: checkpoint < config files < command line.

    Returns:
        The arguments as given, the words for the parser, and the checkpoint.

    Raises:
        UserError: for an option without effect, and see `find_loaded`.
    """
    switches = {name for name, option in command.options.items() if option.annotation is bool}
    arguments = Arguments.read(words, switches)
    for flag, *_ in arguments.options:
        key = flag.partition("=")[0].removeprefix("--").rstrip("+")
        if any(key == name or key.startswith(f"{name}.") for name in command.ignores):
            raise UserError(f"{key} has no effect on {command.name}: leave it out")
    for model, data in LINKS.items():
        if arguments.value(f"model.{model}") is not None:
            raise UserError(f"model.{model} follows the data: set data.{data} instead")
    if {"-h", "--help"} & set(words):
        return arguments, ["--help"], Loaded()
    loaded = find_loaded(command, arguments, openers)
    if loaded.path is None:
        return arguments, arguments.words(), loaded
    # In one line, its order kept: of patterns, the first counts.
    inline = yaml.safe_dump(loaded.config, default_flow_style=True, width=1_000_000_000, sort_keys=False)
    return arguments, ["--config", inline, *arguments.words(), f"--ckpt_path={loaded.path}"], loaded
