"""A child of a switching worker whose engine process is `tests.helpers.gated_engine`."""

from __future__ import annotations

import sys

from worker.engine_process import spawned
from worker.switching import child_main

if __name__ == "__main__":
    spawned.ENGINE_MODULE = "tests.helpers.gated_engine"
    sys.exit(child_main.main())
