"""Whether the worker on this machine lives: `python -m worker.health` for containers, exit code 0 or 1.

The worker touches a file while both of its halves make progress. A file, because a probe that asks Redis would restart
workers for an outage of Redis, and one that asks Celery imports it each time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tasks.settings import settings

#: An older sign of life than this, in seconds, is none.
STALE_S = 15.0


def touch(path: Path) -> None:
    """Give a sign of life."""
    path.touch()


def main() -> int:
    """Print and return the verdict."""
    path = settings().health_file
    if path is None:
        print("CELERIAC_HEALTH_FILE is not set, for the worker and for this probe", file=sys.stderr)
        return 1
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        print(f"{path} does not exist: the worker has not loaded its checkpoint yet", file=sys.stderr)
        return 1
    if age_s > STALE_S:
        print(f"the last sign of life is {age_s:.0f} s old", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
