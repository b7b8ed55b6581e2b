"""The command line's parser: errors of one line, and a changed class drops the old one's arguments."""

from typing import Any, NoReturn

from jsonargparse import _typehints
from lightning.pytorch.cli import LightningArgumentParser

from project.errors import UserError
from project.messages import one_line


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one line instead of sixty."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(one_line(message, self._keys())) from ex

    def _keys(self) -> list[str]:
        """All keys of this parser and its commands'."""
        keys = [action.dest for action in self._actions]
        for action in self._actions:
            for command in action.choices.values() if isinstance(action.choices, dict) else ():
                keys += [other.dest for other in command._actions]
        return keys


def _discard_init_args(parser_or_action: Any, before: Any, value: Any) -> None:
    """A new class_path starts without the init_args of the class before it.

    jsonargparse would keep those that the new class knows by the same name, given or default: SGD chosen over a file's AdamW would
    take over its weight decay without a word.
    """
    if before and "init_args" in before and before["class_path"] != value["class_path"]:
        del before["init_args"]


# There is no public place for it. tests/test_parser.py holds the effect for every pair of optimizers.
_typehints.discard_init_args_on_class_path_change = _discard_init_args
