"""What is printed of an error: one line with the key, what was expected, and the nearest name of a misspelt one."""

import logging
import re
import sys
import warnings
from difflib import get_close_matches
from typing import NoReturn, TextIO

from project.errors import UserError

# key -> a class to name there
EXAMPLES = {
    "schedule": "project.optim.Cosine",
    "freeze": "project.optim.Freeze",
    "net": "project.nets.ResNet",
    "augment": "project.data.HorizontalFlip",
    "source": "project.data.ImageFolder",
    "task": "project.tasks.MultiClass",
    "optimizer": "torch.optim.AdamW",
}
MOVED = {
    "label_smoothing": "model.task.label_smoothing",
    "class_weights": "model.task.class_weights",
    "layer_decay": "model.stem_lr, the share of the learning rate that the first layer has",
}
HINTS = {  # key -> what else to say
    "data.image_size": "; images are square here: give one number, and data.resize says how other shapes become square",
    "model.net": ": start from a config file, for example --config configs/digits.yaml",
}
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text in quotes",
    "dict": "keys and values",
    "list": "a list",
    "Sequence": "a list",
}
OBJECTIONS = (  # of a type that was not meant
    "Type collections.abc.Callable",
    "Import path does not correspond",
    "Does not validate",
    "a class path (str)",
    "Not a valid subclass",
)
LIMIT = 400  # characters; a value that is quoted in full can be a whole file


class OneLineErrors:
    """Mixed into a parser of jsonargparse: its errors are one line instead of sixty."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(one_line(message, [action.dest for action in self._actions])) from ex


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line, from the first of several processes only: they all say the same."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    if lightning is None or lightning.rank_zero_only.rank == 0:
        print(line, file=file, flush=True)


def quiet() -> None:
    """Silence what the user cannot act on; warnings of the user's own code still show."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*It is recommended to use `self.log\\(.*sync_dist=True.*",
        ".*LightningCLI's args parameter is intended.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*The `srun` command is available on your system but is not used.*",
        ".*Encountered `nan` values in tensor.*",  # the learning curve says so
        ".*``compute`` method of metric .* was called before the ``update``.*",  # resumed after an epoch's last batch
    ):
        warnings.filterwarnings("ignore", message=message)


def one_line(message: str, keys: list[str]) -> str:
    """Shorten a message of jsonargparse.

    Args:
        message: As the parser says it, often over many lines.
        keys: All keys that the parser knows, for "did you mean".

    Returns:
        One line; anything in an unknown form is only put on one line.
    """
    plain = re.sub(r"<class '([\w.]+)'>", r"\1", message)
    name, body = re.fullmatch(r'(?:Parser key "([^"]+)":)?(.*)', plain, re.DOTALL).groups("")
    key = f"{name}: " if name else ""
    if found := re.search(r"unrecognized arguments: ([^-\s]\S*)", body):
        return f"{found[1]} stands alone: give the option that it belongs to before it; --help lists them"
    if found := re.search(r"(?:does not accept option|unrecognized arguments:) '?-*([\w.+]+)", body):
        name = found[1].rstrip("+")
        moved = MOVED.get(name.removeprefix("model."))
        return f"{name}: it is now {moved}" if moved else f"{name}: there is no such key{_nearest(name, keys)}"
    if found := re.search(r"Option '([^']+)' is not accepted(; did you mean [^?]*\?)?", body):
        if found[1] == "lr":
            return f"{key}it takes no lr of its own: model.lr is the one learning rate"
        return f"{key}the chosen class has no argument {found[1]!r}{_nearest(found[1], keys) or found[2] or ''}"
    if found := re.search(r"Unable to load config [\"']([^\"']+)", body):
        twice = re.search(r"\S+ is given twice.*", body)
        return f"{key}the config file {found[1]}: {twice[0] if twice else 'it is missing or is not valid YAML'}"
    if found := re.search(r"arguments are required: (\S+)", body):
        name = found[1].rstrip(",")
        return f"{name} is missing{HINTS.get(name, '')}"
    if found := re.search(r"dot import path string: (\S+)|No module named '([\w.]+)'|module '(project)' has no", body):
        return f"{key}{_no_class(_given(body) or found[found.lastindex], name)}"
    if found := re.search(r"Not of type \w*?(Int|Float|Interval): (.*)", body):
        said, _, bounds = found[2].partition("does not conform to restriction ")
        value = _given(body) or said.removesuffix(" not an integer").split()[-1].strip("':")
        for sign, words in (("v>=", "at least "), ("v<=", "at most "), ("v>", "above "), ("v<", "below ")):
            bounds = bounds.replace(sign, words)
        expected = f"must be {bounds}" if bounds else f"expected a {'whole ' if found[1] == 'Int' else ''}number"
        return f"{key}{expected}, not {value}{HINTS.get(name, '')}"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", body):
        public = [each for each in dir(sys.modules.get(found[1])) if not each.startswith("_")]
        return f"{key}{found[1]} has no {found[2]!r}{_nearest(found[2], public, f'{found[1]}.')}"
    return f"{key}{_reason(body, name) or ' '.join(body.split())}"[:LIMIT]


def _no_class(given: str, key: str) -> str:
    """For what should be the path of a class: one of the same name that is here, or an example."""
    name = given.rpartition(".")[2]
    for module in sorted(each for each in sys.modules if each.startswith("project.")):
        here = getattr(sys.modules[module], name, None)
        if isinstance(here, type) and here.__module__.startswith("project."):
            return f"{given!r} is not a class; did you mean {module}.{name}?"
    example = _example(key) or "lightning.pytorch.callbacks.EarlyStopping"
    return f"{given!r} is not a class; write its whole path, such as {example}"


def _example(key: str) -> str | None:
    return next((path for part, path in EXAMPLES.items() if part in key), None)


def _reason(body: str, key: str) -> str | None:
    """What was expected, and what was given, of the many things that each type of the key objects to."""
    listed = re.search(r"Errors:\n(.*?)\n\s*Given value type", body, re.DOTALL)
    errors = re.split(r"^\s*- ", listed[1] if listed else body, flags=re.MULTILINE)
    errors = [each for each in (" ".join(error.split()) for error in errors) if each and "NoneType" not in each]
    own = [each for each in errors if not each.startswith(OBJECTIONS) and "Expected a " not in each]
    if own:  # a class's own words
        return own[0] if listed else None
    if kind := re.search(r"subclass of (?:<class ')?([\w.]*\w)|function that returns (\w+)", " ".join(errors)):
        example = _example(key)
        such = f"; write the path of one, such as {example}" if example else ""
        return f"{_given(body)} is not a {kind[1] or kind[2]}{such}"
    types = re.findall(r"(\w+: )?Expected a (?:typing\.)?([\w.]*\w)(\[.*?\])?", " ".join(errors))
    if not types:
        return None
    words = [
        f"one of {choices[1:-1]}" if kind == "Literal" else TYPES.get(kind.rpartition(".")[2], kind)
        for _, kind, choices in types
    ]
    return f"{types[0][0]}expected {' or '.join(dict.fromkeys(words))}, not {_given(body)}"


def _given(body: str) -> str:
    """The value that a message is about; of a class with arguments, its path."""
    value = re.search(r"(?:Given|Got) value: (.*)", body, re.DOTALL)
    text = " ".join(value[1].split()) if value else ""
    path = re.search(r"class_path='([^']+)'", text)
    return path[1] if path else text


def _nearest(name: str, names: list[str], prefix: str = "") -> str:
    """`; did you mean x?`, where some name is near; by the whole key, else by its last part."""
    close = get_close_matches(name, names, cutoff=0.75)
    if not close:
        last = {each.rsplit(".", 1)[-1]: each for each in reversed(names)}
        close = [last[each] for each in get_close_matches(name.rsplit(".", 1)[-1], last, cutoff=0.75)]
    return f"; did you mean {prefix}{close[0]}?" if close else ""
