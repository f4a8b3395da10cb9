"""Whether the worker on this machine works: `python -m worker.health` for containers, exit code 0 or 1.

The worker touches a file while both of its processes make progress. The probe reads the file, and does not ask Redis
or Celery: a probe that needs Redis would restart workers in an outage of Redis, and importing Celery takes a while.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import structlog

from tasks.errors import ConfigurationError
from tasks.settings import settings

log = structlog.get_logger(__name__)

#: A worker whose file is older than this, in seconds, is unhealthy. If heartbeats are rare, it may be as old as
#: STALE_HEARTBEATS of them: the worker touches the file before each one.
STALE_S = 15.0
STALE_HEARTBEATS = 3


class HealthFile:
    """The file, on the worker's side. A file that cannot be written makes the probe fail, and not the worker."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = False

    def touch(self) -> None:
        """Record that the worker makes progress. An error is logged once, until it is over."""
        try:
            self._path.touch()
        except OSError as error:
            if not self._failed:
                log.error(
                    "health_file_failed",
                    path=str(self._path),
                    error=error.strerror,
                    what="the worker continues, and `python -m worker.health` reports it as unhealthy",
                )
            self._failed = True
            return
        if self._failed:
            log.info("health_file_written_again", path=str(self._path))
        self._failed = False


def main() -> int:
    """Check the file. Prints what is wrong, and returns the exit code."""
    try:
        config = settings()
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1
    path = config.health_file
    if path is None:
        print("CELERIAC_HEALTH_FILE is not set; set it for the worker and for this probe", file=sys.stderr)
        return 1
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        print(
            f"{path} does not exist: the worker has not loaded its checkpoint yet, or cannot write the file (then its "
            "log has health_file_failed)",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"{path} cannot be read: {error.strerror}", file=sys.stderr)
        return 1
    if age_s > max(STALE_S, STALE_HEARTBEATS * config.heartbeat_s):
        print(
            f"the worker last touched {path} {age_s:.0f} s ago: it hangs, has ended, or cannot write the file",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
