"""The checkpoints that can be served without giving their paths."""

from __future__ import annotations

from pathlib import Path

from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.folder import default_name, find, runs_below
from worker.checkpoints.nanochat_home import home, run_name


def offers(root: Path) -> list[tuple[str, str]]:
    """(What `--checkpoint` takes, the name for clients) of each run in `root` and in nanochat's own folder."""
    here = [(str(run.relative_to(root)), run) for run in runs_below(root)]
    there = [(run_name(run) or str(run), run) for run in runs_below(home())]
    return [(argument, default_name(run)) for argument, run in here + there if _is_complete(run)]


def _is_complete(run: Path) -> bool:
    try:
        # Under a name of its own, a folder whose name cannot be one is served, too.
        find(str(run.absolute()), run.parent, name="any")
    except CheckpointError:
        return False
    return True
