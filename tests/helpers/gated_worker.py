"""`celeriac worker` whose engine process is `tests.helpers.gated_engine`."""

from __future__ import annotations

from celeriac.__main__ import main
from worker.engine_process import spawned

if __name__ == "__main__":
    spawned.ENGINE_MODULE = "tests.helpers.gated_engine"
    main()
