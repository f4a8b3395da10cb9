"""Runs the command line: `celeriac`, `python -m celeriac`, and the processes of `celeriac serve`."""

from __future__ import annotations

import os
import site
import sys

#: The folder that contains this package: `site-packages`, or the root of a checkout.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> None:
    """Run the command line. No module of the current folder is imported.

    Ctrl-C while modules are imported ends it as Ctrl-C does later.
    """
    only_import_installed_modules()
    try:
        # Imported here, because the line above decides what is imported.
        from celeriac.cli import main as command_line
    except KeyboardInterrupt:
        sys.exit("\nAborted!")
    command_line()


def only_import_installed_modules() -> None:
    """Remove the current folder from the import path, and add ROOT, from which this file came.

    `python -m` puts the current folder first, and an empty entry in PYTHONPATH names it as well. It may have a `tasks`,
    a `redis.py` or a `torch.py` of another project. If it is ROOT, or a folder of this Python, it stays.
    """
    root = os.path.realpath(ROOT)
    python = (os.path.dirname(os.__file__), *site.getsitepackages(), site.getusersitepackages())
    # An entry that is empty is the current folder.
    current = os.path.realpath("")
    if current != root and not any(f"{current}/".startswith(f"{os.path.realpath(folder)}/") for folder in python):
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != current]
    if root not in map(os.path.realpath, sys.path):
        sys.path.insert(0, ROOT)


if __name__ == "__main__":
    main()
