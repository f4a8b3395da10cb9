"""`celeriac worker` whose engine process is `tests.helpers.gated_engine`."""

from __future__ import annotations

from celeriac.__main__ import main
from worker.engine_process import client as engine_client

if __name__ == "__main__":
    engine_client.ENGINE_MODULE = "tests.helpers.gated_engine"
    main()
