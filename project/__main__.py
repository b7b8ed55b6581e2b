"""`python -m project`: see `python -m project --help`."""

import os
import signal
import sys

from project import __version__

if __name__ == "__main__":
    if "--version" in sys.argv[1:2]:  # answered before torch is imported, which takes seconds
        print(f"project {__version__}")
        sys.exit(0)
    if sys.argv[1:2] == ["verify"]:  # answered without torch, which the machine that runs an exported file may not have
        from project.extras.export.verify import main as verify

        sys.exit(verify(sys.argv[2:]))
    signal.signal(
        signal.SIGINT, lambda *_: os._exit(130)
    )  # Ctrl-C in the seconds of importing: nothing to save, nothing to say
    from project.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)

    sys.exit(main(sys.argv[1:]))
