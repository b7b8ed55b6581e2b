"""YAML as a person means it: keys given once, numbers and text told apart by their place, paths in full."""

import re
from contextlib import suppress
from typing import Any

import yaml
from jsonargparse import _typehints, set_loader
from jsonargparse._loaders_dumpers import get_yaml_default_loader

from project.files import expand

PATH = re.compile(r"(^|[._-])(root|dir|dirpath|path|file|folder|weights|out|space|config|data|model|trainer)\+?$")


class Loader(get_yaml_default_loader()):  # that of jsonargparse: 1e-3 is a number, and there are no dates
    """Refuses a key that is given twice in one place, and writes out ~ and $VAR in the values of keys named as paths.

    What is read otherwise than it is written (010, 1e5, yes) stays text. Where its key wants a number or a truth value
    the parser turns it into one, and where it wants text, such as the name of a class, it is already right.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.YAMLError(f"{name} is given twice, in lines {lines[name]} and {line}; leave one out")
            lines[name] = line
        return {key: in_full(str(key), value) for key, value in super().construct_mapping(node, deep).items()}


def in_full(key: str, value: Any) -> Any:
    """A value, written out where its key means a path."""
    return expand(value) if isinstance(value, str) and PATH.search(key) else value


def load(text: str) -> Any:
    """Read YAML."""
    return yaml.load(text, Loader)


def _as_written(loader: Loader, node: Any) -> Any:
    for kind in (int, float):
        with suppress(ValueError):
            if str(value := kind(node.value)) == node.value:
                return value
    return {"true": True, "false": False}.get(node.value.lower(), node.value)


for _kind in ("int", "float", "bool"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _as_written)
set_loader("yaml", load, (yaml.YAMLError,))

# There is no public place for the rest. tests/test_notation.py holds the effects.
_rank, _adapt = _typehints.union_subtype_sort_key, _typehints.adapt_typehints


def _numbers_first(kind: Any) -> int:
    """Of `float | int`, int is tried first: 1 is one batch, and 1.0 all of them; and of `str | int` too."""
    return {int: -2, float: -1}.get(kind) or _rank(kind)


def _text_for_numbers(value: Any, kind: Any, *arguments: Any, **options: Any) -> Any:
    """A folder or a class named 1 is text; `Loader` reads as numbers only those that are written like this again."""
    return _adapt(str(value) if kind is str and type(value) in (int, float) else value, kind, *arguments, **options)


_typehints.union_subtype_sort_key, _typehints.adapt_typehints = _numbers_first, _text_for_numbers
