"""Whether the files of a checkpoint are being changed: copied, replaced or deleted while a worker loads them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from worker.checkpoints.folder import CheckpointFolder
from worker.checkpoints.huggingface_files import parts_of
from worker.checkpoints.tokenizers.finder import tokenizer_paths

#: Files that did not change for this long are taken as complete, in seconds.
SETTLED_AFTER_S = 3.0
#: If files are not complete and were seen to change, or were complete before, their writer may only have paused: for at
#: most this long, in seconds.
ABANDONED_AFTER_S = 30.0
#: How often files that are being written are looked at, in seconds.
POLL_S = 0.2

#: Inode, size, and times of the last change of the content and of the entry, in ns; None for a file that is missing.
FileState = tuple[int, int, int, int] | None


class CheckpointFiles:
    """The files that loading a checkpoint reads, observed over some time. Links are followed."""

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        being_replaced: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`being_replaced`: if the files are not complete, they were complete before.

        `clock` and `wall_clock` return seconds; the times of files are compared with the second.
        """
        self._folder = folder
        self._clock = clock
        self._wall_clock = wall_clock
        self._seen = self._states()
        #: When `_seen` was first observed; None if it had settled before.
        self._since = None if self._is_old() and not being_replaced else clock()
        #: Whether a process seems to write them: they were complete before, or `changed` returned True before.
        self.seen_changing = being_replaced

    def changed(self) -> bool:
        """Whether a file changed since the last call, or since this object was made."""
        states = self._states()
        if states == self._seen:
            return False
        self._seen = states
        self._since = self._clock()
        self.seen_changing = True
        return True

    def unchanged_for(self, seconds: float) -> bool:
        """Whether the files had not changed for so long when `changed` was last called."""
        return self._since is None or self._clock() - self._since >= seconds

    def _is_old(self) -> bool:
        """Whether all files are there and the last change is long ago. A clock that is wrong only makes this False."""
        required, others = self._seen
        states = (_state(self._folder.path), *required)
        if None in states:
            return False
        newest_ns = max(state[3] for state in (*states, *others) if state is not None)
        return self._wall_clock() - newest_ns / 1e9 >= SETTLED_AFTER_S

    def _states(self) -> tuple[tuple[FileState, ...], tuple[FileState, ...]]:
        """The states of the files that a checkpoint must have, and of those that a tokenizer may have."""
        folder = self._folder
        weights = [folder.model_file]
        if folder.format == "huggingface":
            weights += [part for part in parts_of(folder.model_file) if part != folder.model_file]
        required = (*weights, folder.meta_file)
        return tuple(map(_state, required)), tuple(map(_state, tokenizer_paths(folder)))


def _state(path: Path) -> FileState:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def wait_for_change(files: CheckpointFiles, *, changed: bool = False) -> bool:
    """Wait until files changed (which they have already if `changed`) and then did not change for some seconds.

    Returns False if they do not change, so that no process seems to write them.
    """
    while True:
        if changed and files.unchanged_for(SETTLED_AFTER_S):
            return True
        if not changed and files.unchanged_for(ABANDONED_AFTER_S if files.seen_changing else SETTLED_AFTER_S):
            return False
        time.sleep(POLL_S)
        changed = files.changed() or changed
