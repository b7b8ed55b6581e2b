"""YAML as a person means it: keys given once, numbers and text told apart by their place, paths in full."""

import json
from contextlib import suppress
from functools import partial
from typing import Any

import yaml
from jsonargparse import _typehints, set_loader

from project.files import expand

MAKER = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}  # builds a model again from what is `written`


class Loader(yaml.SafeLoader):
    """Refuses a key that is given twice in one place, and writes out ~ and $VAR in the values of paths.

    What is read otherwise than it is written (010, 1_0, yes, 2020-01-01) stays text. Where its key wants a number or a
    truth value the parser turns it into one, and where it wants text, such as the name of a class, it is already right.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            first = seen.setdefault(key.value, key)
            if first is not key:
                where = f"in lines {first.start_mark.line + 1} and {key.start_mark.line + 1}"
                raise yaml.YAMLError(f"{key.value} is given twice, {where}; leave one out")
            if isinstance(value, yaml.ScalarNode):
                value.value = expand(str(key.value), value.value)
        return super().construct_mapping(node, deep)


def written(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as YAML has them, and so a checkpoint: a class, or a partial of one, is its path with its arguments.

    What YAML cannot say is left out, such as a function.
    """
    found = {}
    for name, value in settings.items():
        if isinstance(value, (type, partial)):
            made = partial(value)
            arguments = {"init_args": written(made.keywords)} if made.keywords else {}
            value = {"class_path": f"{made.func.__module__}.{made.func.__qualname__}", **arguments}
        with suppress(yaml.YAMLError):
            yaml.safe_dump(value)
            found[name] = value
    return found


def load(text: str) -> Any:
    """Read YAML."""
    return yaml.load(text, Loader)


def _as_written(loader: Loader, node: Any) -> Any:
    with suppress(ValueError):
        return json.loads(node.value)
    return node.value


for _kind in ("int", "float", "bool", "timestamp"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _as_written)
set_loader("yaml", load, (yaml.YAMLError,))


def _discard_init_args(parser_or_action: Any, before: Any, value: Any) -> None:
    """A new class_path starts without the init_args of the class before it.

    jsonargparse would keep those that the new class knows by the same name, given or default: SGD chosen over a file's
    AdamW would take over its weight decay without a word.
    """
    if before and "init_args" in before and before["class_path"] != value["class_path"]:
        del before["init_args"]


# There is no public place for these two. tests/test_cli_classes.py holds the first for every pair of optimizers.
_typehints.discard_init_args_on_class_path_change = _discard_init_args
# Of `float | int`, int is tried first: 1 is one batch, 1.0 all of them.
_rank = _typehints.union_subtype_sort_key
_typehints.union_subtype_sort_key = lambda kind: -1 if kind is int else _rank(kind)
