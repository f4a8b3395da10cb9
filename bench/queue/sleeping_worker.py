"""A normal worker whose engine process is `bench.queue.sleeping_engine`."""

from __future__ import annotations

import sys

from worker.engine_process import spawned
from worker.main import run

if __name__ == "__main__":
    spawned.ENGINE_MODULE = "bench.queue.sleeping_engine"
    sys.exit(run())
