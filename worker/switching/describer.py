"""The switching worker's side of the process that describes checkpoints."""

from __future__ import annotations

import time
from contextlib import suppress

import structlog

from tasks.settings import Settings
from worker.checkpoints.folder import CheckpointFolder
from worker.engine_process.messages import start_message
from worker.engine_process.spawned import Spawned, spawn
from worker.switching.description import Description, DeviceFacts, Refusal

log = structlog.get_logger(__name__)

#: The module that the process runs.
MODULE = "worker.switching.describer_main"
#: How long the process may take to start, and to describe a checkpoint, in seconds.
START_S = 120.0
DESCRIBE_S = 60.0
#: The process ends when it was not needed for this long, in seconds.
IDLE_S = 20.0


class DescriberError(Exception):
    """No checkpoint can be described. The message is for people."""


class Describer:
    """Describes checkpoints, one at a time, in a process that is started when it is needed. For one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._spawned: Spawned | None = None
        self._used_at = 0.0

    @property
    def pid(self) -> int | None:
        """Process id; None while there is no process."""
        return None if self._spawned is None else self._spawned.process.pid

    def start(self) -> DeviceFacts:
        """Start the process. Raises DescriberError if it cannot run or finds no such device."""
        try:
            self._spawned = spawn(MODULE)
        except OSError as error:
            raise DescriberError(f"A process could not be started: {error.strerror}.") from error
        self._used_at = time.monotonic()
        facts = self._receive(self._spawned, START_S)
        if isinstance(facts, DeviceFacts):
            return facts
        self.stop()
        raise DescriberError(facts.reason if isinstance(facts, Refusal) else "The process sent something else.")

    def describe(self, folder: CheckpointFolder) -> Description | Refusal:
        """The description of a checkpoint, or why it cannot be loaded. Raises DescriberError."""
        if self._spawned is None:
            self.start()
        spawned = self._spawned
        assert spawned is not None
        # A process that has ended is noticed by the read below.
        with suppress(OSError):
            spawned.connection.send(start_message(self._settings, folder))
        answer = self._receive(spawned, DESCRIBE_S)
        self._used_at = time.monotonic()
        if isinstance(answer, Description):
            return answer
        return answer if isinstance(answer, Refusal) else Refusal(f"{folder.path}: no description")

    def rest(self) -> None:
        """End the process if it was not needed for a while."""
        if self._spawned is not None and time.monotonic() - self._used_at > IDLE_S:
            self.stop()

    def stop(self) -> None:
        """End the process."""
        if self._spawned is not None:
            spawned, self._spawned = self._spawned, None
            spawned.process.kill()
            spawned.process.wait()
            spawned.connection.close()

    def _receive(self, spawned: Spawned, timeout_s: float) -> object:
        """The next message. A refusal, and no process, if it does not come: the process is in an unknown state then."""
        try:
            if spawned.connection.poll(timeout_s):
                message: object = spawned.connection.recv()
                return message
            reason = f"it was not described within {timeout_s:g} s"
        except (EOFError, OSError):
            reason = f"the process that describes it ended with code {spawned.process.wait()}"
        self.stop()
        log.error("describer_failed", reason=reason)
        return Refusal(reason)
