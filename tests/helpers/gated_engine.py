"""An engine process that makes only as many steps as a test allows, however fast the machine is.

`python -m tests.helpers.gated_worker` is its worker, and `tests.helpers.gate` the test's side. Without a limit it
decodes as every engine.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from tests.helpers.gate import Gate
from worker.engine_process import loading
from worker.engine_process import main as engine_process
from worker.engine_process.messages import Start
from worker.model_loader import LoadedModel, Progress

#: Pause between two looks at the limit while no step is allowed, in seconds.
PAUSE_S = 0.001


def load(start: Start, progress: Progress) -> LoadedModel:
    """Load what `worker.engine_process.loading` loads, and count the steps of its engine."""
    loaded = real_load(start, progress)
    gate, step = Gate(os.getpid()), loaded.engine.step
    #: The limit that counts now, and the steps since it was set.
    present: tuple[str, int] | None = None
    used = 0

    def gated_step(*args: Any, **options: Any) -> Any:
        nonlocal present, used
        while (limit := gate.limit()) is not None:
            if limit != present:
                present, used = limit, 0
            if used < limit[1]:
                break
            time.sleep(PAUSE_S)
        report = step(*args, **options)
        used += 1
        if limit is not None and used == limit[1]:
            gate.reached(limit)
        return report

    loaded.engine.step = gated_step  # type: ignore[method-assign]
    return loaded


real_load = loading.load_once

if __name__ == "__main__":
    loading.load_once = load
    sys.exit(engine_process.main())
