"""A child of a switching worker: an ordinary worker of one checkpoint, which it is told when everything is imported.

    python -m worker.switching.child_main

Its stdin is a socket: see `worker.switching.control`.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading

from worker.engine_process import spare
from worker.switching.control import READY, RETIRE, UNLOADED, Line, Order

#: Imported before the order comes: the worker, and what Celery imports only when one starts.
PREPARED = (
    "worker.transport.bootstep",
    "worker.transport.consumer",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "celery.worker.autoscale",
    "celery.worker.consumer",
)


def main() -> int:
    """Prepare, wait for the order, and be a worker. Returns the exit code: 0 if there is no order."""
    line = Line.of_stdin()
    spare.prepare()
    for name in PREPARED:
        importlib.import_module(name)
    text = line.read()
    if text is None:
        return 0
    # The settings of this process are read when the worker is imported.
    os.environ.update(Order.from_json(text).environment())
    from worker.app import run_worker

    threading.Thread(target=_obey, args=(line,), name="control", daemon=True).start()
    return run_worker(on_ready=lambda: line.send(READY))


def _obey(line: Line) -> None:
    """Retire when the switching worker says so, and stop when it has ended. The body of a thread."""
    from worker.transport.shutdown import retire, stop

    def obey(text: str) -> None:
        if text == RETIRE:
            retire(on_unloaded=lambda: line.send(UNLOADED))

    line.read_all(obey)
    stop()


if __name__ == "__main__":
    sys.exit(main())
