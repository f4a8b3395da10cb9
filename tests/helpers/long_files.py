"""The files whose tests take longest. `make test` begins with them, so that its processes end at about one time."""

from __future__ import annotations

from pathlib import Path

#: The folder of all tests.
TESTS = Path(__file__).parents[1]
#: Files in `TESTS`, in the order in which they run. Other files run after them.
LONG_FILES = (
    "integration/celeriac/test_serve.py",
    "integration/worker/test_stop.py",
    "integration/worker/switching/test_switching_worker.py",
    "integration/celeriac/test_surroundings.py",
    "integration/celeriac/test_settings_at_start.py",
    "integration/worker/test_replaced_files.py",
    "integration/worker/test_states.py",
    "faults/test_chat_resumes.py",
    "integration/worker/test_limits.py",
    "integration/worker/test_control.py",
    "integration/celeriac/test_command_line.py",
    "integration/celeriac/test_guide.py",
    "faults/test_redis_paused.py",
    "integration/celeriac/test_unread_output.py",
    "integration/api/test_openai_faults.py",
    "integration/celeriac/test_terminal.py",
    "faults/test_rolling_restart.py",
    "unit/worker/engine/test_prefix_reuse.py",
    "integration/api/test_processes.py",
    "faults/test_connections.py",
    "faults/test_nothing_leaks.py",
    "faults/test_worker_killed.py",
    "unit/worker/engine/test_batching.py",
    "integration/docs/test_examples.py",
    "unit/worker/engine/test_golden.py",
)


def place(path: Path) -> int:
    """The place of a file of tests in the order in which the files run."""
    name = path.relative_to(TESTS).as_posix()
    return LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)
