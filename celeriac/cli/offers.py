"""The list of checkpoints for a command that was given none."""

from __future__ import annotations

import shlex
from pathlib import Path

from celeriac.cli.printable import LINES, printable

#: Most checkpoints that are listed.
MAX_LISTED = 20


def offered(root: Path) -> str:
    """The checkpoints in the folder `root` and in that of nanochat, as lines to type; without any, a sentence."""
    from worker.checkpoints.nanochat_home import home
    from worker.checkpoints.offers import offers

    found = [(shlex.quote(argument), name) for argument, name in offers(root)]
    if not found:
        return f"No checkpoints were found in {root} and {home()}."
    width = max(len(argument) for argument, _ in found)
    lines = [f"  celeriac serve {argument:<{width}}  serves {name}" for argument, name in found[:MAX_LISTED]]
    if len(found) > MAX_LISTED:
        lines.append(f"  and {len(found) - MAX_LISTED} more, which `celeriac inspect FOLDER` lists")
    return printable("\n".join([f"Found in {root} and {home()}:", *lines]), keep=LINES)
