"""Which command runs, and what an error of it becomes: one line and an exit code."""

import os
import sys

from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from project.cli import CLI, quiet
from project.errors import UserError


def main(arguments: list[str]) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 1 after a check that found what to stop for; 2 after a mistake that the user can mend
        (PROJECT_TRACEBACK=1 shows where it was noticed); 130 after Ctrl-C and 143 after SIGTERM, as shells have it.
    """
    if arguments[:1] == ["verify"]:  # builds nothing, so it needs none of what follows
        from project.extras.export.verify import main as verify

        return verify(arguments[1:])
    quiet()
    if arguments[:1] == ["report"]:  # of runs that are over: it has no configuration of its own
        from project.extras.report.write import main as report

        return report(arguments[1:])
    command = arguments[0] if arguments and arguments[0] in CLI.subcommands() else None
    try:
        if arguments[:1] == ["search"]:  # many fits, each a process of its own
            from project.extras.search.options import main as search

            return search(arguments[1:])
        return CLI(command, arguments[1:] if command else arguments).code
    except UserError as error:
        if os.environ.get("PROJECT_TRACEBACK"):
            raise
        complain(str(error))
        return 2
    except MisconfigurationException as error:  # Lightning's word for a mistake of the user's
        complain(" ".join(str(error).split()))
        return 2
    except RuntimeError as error:
        if not str(error).startswith(("Early stopping conditioned on metric", "Found more than one stateful callback")):
            raise
        complain("trainer.callbacks: " + " ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        return 130
    except SIGTERMException:
        return 143
    except SystemExit as error:  # Lightning's, after it has ended a run in good order
        return 130 if isinstance(error.__context__, KeyboardInterrupt) else int(error.code or 0)


def complain(message: str) -> None:
    """One error, from the first of several processes only: they all make the same mistake."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"error: {message}", file=sys.stderr)
