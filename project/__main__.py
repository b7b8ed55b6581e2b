"""`python -m project`: see `python -m project --help`."""

import sys

from project import __version__

if __name__ == "__main__":
    if "--version" in sys.argv[1:2]:  # answered before torch is imported, which takes seconds
        print(f"project {__version__}")
        sys.exit(0)
    from project.cli import main

    sys.exit(main(sys.argv[1:]))
