"""`celeriac` and `python -m celeriac` run the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Ctrl-C while its modules are imported ends it as Ctrl-C does later."""
    try:
        from celeriac.cli import main as command_line
    except KeyboardInterrupt:
        sys.exit("\nAborted!")
    command_line()


if __name__ == "__main__":
    main()
