"""`python -m project`: see `python -m project --help`."""

import ctypes
import os
import signal
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from difflib import get_close_matches
from typing import get_origin

from jsonargparse import ArgumentParser

from project import __version__, commands
from project.commands import Command
from project.errors import UserError
from project.messages import OneLineErrors, say
from project.processor import crowded

# How often a thread of torch looks for its next piece of work before it sleeps, beside other processes; left alone,
# libgomp spins for 300,000 turns, some 15 ms, in which it keeps the core from whoever has the work. Where nobody else
# has any, that is the fastest. `benchmarks.machine waiting` measures it.
SPINS = "1000"
# glibc gives large blocks back to the system after each step, and takes them again page by page: the heap shall keep
# them (M_MMAP_MAX 0, M_TRIM_THRESHOLD none) and grow by 256 MB (M_TOP_PAD). `benchmarks.machine memory` measures it.
MALLOC = {-4: 0, -1: -1, -2: 2**28}


class Parser(OneLineErrors, ArgumentParser):
    """For commands that need no configuration."""


def main(words: list[str]) -> int:
    """Run one command.

    Returns:
        The exit code: the command's own; 2 after a mistake that the user can fix (PROJECT_TRACEBACK=1 shows where it
        was noticed); 130 after Ctrl-C.
    """
    try:
        known, openers = commands.find()
        if not words or words[0] in ("-h", "--help"):
            print(usage(known))
            return 0 if words else 2
        if words[0] == "--version":
            print(f"project {__version__}")
            return 0
        if words[0] not in known:
            near = ", ".join(get_close_matches(words[0], known, n=1) or known)
            raise UserError(f"there is no command {words[0]!r}; did you mean {near}?")
        command = known[words[0]]
        if command.needs == "nothing":
            return run_alone(command, words[1:])
        from project.cli import run_command  # torch takes seconds

        _listen()
        return run_command(command, words[1:], openers)
    except UserError as error:
        if os.environ.get("PROJECT_TRACEBACK"):
            raise
        say(f"error: {' '.join(str(error).split())}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def usage(known: dict[str, Command]) -> str:
    """What there is, a line each."""
    width = max(map(len, known))
    head = "usage: python -m project COMMAND [options]; each command has its own --help"
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in known.items()]
    return "\n".join([head, "", *lines, "", "start with: python -m project fit --config configs/digits.yaml"])


def run_alone(command: Command, words: list[str]) -> int:
    """A command that needs no configuration, and starts without torch."""
    parser = Parser(prog=f"python -m project {command.name}")
    parser.add_function_arguments(command.function, as_positional=True)
    lists = [f"--{name}" for name, option in command.options.items() if get_origin(option.annotation) is list]
    arranged = []
    for flag, *values in commands.units(words):  # --run A B is --run+=A --run+=B for the parser
        arranged += [f"{flag}+={value}" for value in values] if flag in lists else [flag, *values]
    try:
        values = parser.parse_args(arranged).as_dict()
    except SystemExit as error:  # --help
        return int(error.code or 0)
    _listen()
    return command.function(**values) or 0


def prepare(environment: MutableMapping[str, str]) -> None:
    """Set what torch's threads and memory read once, before it is loaded, where the user has not."""
    if not environment.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} and crowded():
        environment["GOMP_SPINCOUNT"] = SPINS  # libgomp alone reads it
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in environment):
        with suppress(AttributeError, TypeError):  # the C library is another
            for option, value in MALLOC.items():
                ctypes.CDLL(None).mallopt(option, value)


def _leave(*_: object) -> None:
    """On Ctrl-C in the seconds of importing: there is nothing to save, nothing to say."""
    os._exit(130)


def _listen() -> None:
    """From now on Ctrl-C is an exception."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _leave)
    prepare(os.environ)
    sys.stdout.reconfigure(errors="replace")  # of letters that the terminal cannot show
    sys.exit(main(sys.argv[1:]))
