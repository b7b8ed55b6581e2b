"""The parser's messages, shortened to one line: the key, what is wrong, and the nearest name when one is misspelt."""

import importlib
import re
from collections.abc import Iterable
from difflib import get_close_matches

EXAMPLES = {  # key -> a class to name there
    "schedule": "project.optim.Cosine",
    "optimizer": "torch.optim.AdamW",
    "freeze": "project.optim.Freeze",
    "net": "project.nets.ResNet",
    "source": "project.data.ImageFolder",
    "augment": "project.data.HorizontalFlip",
}
LIMIT = 400  # characters; a value that is quoted in full can be a whole file


def one_line(message: str, keys: Iterable[str]) -> str:
    """Shorten a message of jsonargparse.

    Args:
        message: As the parser says it, often over many lines.
        keys: All keys that the parser knows, for "did you mean".

    Returns:
        One line; anything in an unknown form is only put on one line.
    """
    key = "".join(f"{name}: " for name in re.findall(r'^Parser key "([^"]+)":', message)[:1])
    body = re.sub(r'^Parser key "[^"]+":', "", message)
    body = re.sub(r"<class '([\w.]+)'>", r"\1", body).replace("Expected a ", "expected ")
    if found := re.search(r"(?:does not accept option|unrecognized arguments:) '?-*([\w.+]+)", body):
        name = found[1].rstrip("+")
        return f"{name}: there is no such key{_nearest(name, keys)}"
    if found := re.search(r"Option '([^']+)' is not accepted(; did you mean [^?]*\?)?", body):
        if found[1] == "lr":
            return f"{key}it takes no lr of its own: model.lr is the one learning rate"
        return f"{key}there is no argument {found[1]!r} in the class that is chosen{_nearest(found[1], keys) or found[2] or ''}"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", body):
        return f"{key}{found[1]} has no {found[2]!r}{_nearest(found[2], _names_of(found[1]), found[1] + '.')}"
    if found := re.search(r"Unable to load config [\"']([^\"']+)", body):
        return f"{key}the config file {found[1]} is missing or no valid YAML"
    if found := re.search(r"arguments are required: (?:\w+\.)?(\S+)", body):
        where = (
            ": start from a config file, for example --config configs/digits.yaml" if found[1] == "model.net" else ""
        )
        return f"{key}{found[1]} is missing{where}"
    if found := re.search(r"dot import path string: (\S+)", body):
        example = next(
            (path for part, path in EXAMPLES.items() if part in key), "lightning.pytorch.callbacks.EarlyStopping"
        )
        return f"{key}{found[1]!r} is no class; write its whole path, such as {example}"
    if '"subcommand" to be one of' in body:
        commands = "fit, validate, test, predict, export, check, lr_find, batch_find, search, report or verify"
        return f"say what to do: {commands}; python -m project --help tells more"
    if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", body):
        commands = found[2].replace("'", "")  # Python 3.12 quotes none of them
        return f"there is no command {found[1]!r}; choose from {commands}, search, report, verify"
    return (key + (_reason(body) or " ".join(body.split())))[:LIMIT]


def _reason(body: str) -> str | None:
    """The first error of a list of alternatives that is not about leaving the key out, with the value that was given."""
    listed = re.search(r"Errors:\n(.*?)\n\s*Given value type", body, re.DOTALL)
    if not listed:
        return None
    errors = [" ".join(error.split()) for error in re.split(r"^\s*- ", listed[1], flags=re.MULTILINE) if error.strip()]
    # What every other type of the key would have been.
    vague = ("Type collections.abc.Callable", "Not a valid subclass of", "a class path (str)", "a dict with")
    telling = [_shorter(error) for error in errors if "NoneType" not in error and not error.startswith(vague)]
    value = re.search(r"Given value: (.*)", body, re.DOTALL)
    given = " ".join(value[1].split()) if value else ""
    reason = " or ".join(dict.fromkeys(telling or errors))
    return f"{reason}, not {given}" if reason.startswith("expected") else reason


def _shorter(error: str) -> str:
    """An error about a function, without the name of its type."""
    return re.sub(
        r"Type \S+\[.*\] expects a function or a callable class: (.*)\. Got value: (.*)",
        r"\2 is no function: \1",
        error,
    )


def _nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'x'?`, where some name is near; by the whole key, else by its last part."""
    names = list(names)
    close = get_close_matches(name, names, n=1, cutoff=0.75)
    if not close:
        last = name.rsplit(".", 1)[-1]
        close = [other for other in names if other.rsplit(".", 1)[-1] == last][:1]
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _names_of(module: str) -> list[str]:
    """The public names of a module that is there."""
    try:
        return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]
    except ImportError:
        return []
