"""`celeriac worker --checkpoints`, whose children have gated engines: see `tests.helpers.gated_engine`."""

from __future__ import annotations

from celeriac.__main__ import main
from worker.switching import child_worker

if __name__ == "__main__":
    child_worker.MODULE = "tests.helpers.gated_child"
    main()
