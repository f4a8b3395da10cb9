"""The checkpoints that a switching worker can load, kept up to date with a folder that others write to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from tasks.card import Card
from tasks.store.switching_store import Offer
from worker.checkpoints.errors import CheckpointError
from worker.checkpoints.file_state import ABANDONED_AFTER_S, SETTLED_AFTER_S, CheckpointFiles
from worker.checkpoints.folder import CheckpointFolder, find, step_folder
from worker.switching.description import Description, Refusal
from worker.switching.found import Finder, FolderError, Found

log = structlog.get_logger(__name__)

#: Most checkpoints whose files are compared with what was seen before in one scan, beside those that are being written.
#: The others have their turn in the next scans, so that the cost of a scan does not grow with their number.
CHECKED_AT_ONCE = 50
#: How long one scan describes checkpoints, in seconds. The others have their turn in the next one.
DESCRIBING_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A checkpoint that can be loaded."""

    #: What `celeriac worker --checkpoint` takes for it.
    argument: str
    offer: Offer

    @property
    def card(self) -> Card:
        """Its card."""
        return self.offer.card


class _Watched:
    """One checkpoint of the folder, and what is known about it."""

    def __init__(self, found: Found, folder: CheckpointFolder, files: CheckpointFiles) -> None:
        self.found = found
        #: Where the links in its path lead.
        self.real_path = os.path.realpath(found.run)
        self.folder = folder
        self.files = files
        #: That of its last whole state; None if it had none.
        self.description: Description | None = None
        #: Whether the present state of its files was described.
        self.is_described = False
        #: Since when it is not found any more; None if it is.
        self.missing_since: float | None = None


class Catalog:
    """Scans a folder, and describes what it finds when its files are whole. For one thread.

    A checkpoint is offered when its files have not changed for some seconds and it can be described. It stays offered
    when they change, until they have settled: then as what they are now, or, if they are broken, not at all. One that
    is gone is offered for some seconds more, because a copy may replace it.
    """

    def __init__(
        self,
        folder: Path,
        describe: Callable[[CheckpointFolder], Description | Refusal],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` and `wall_clock` return seconds; the times of files are compared with the second."""
        self._folder = folder
        self._finder = Finder(folder, wall_clock=wall_clock)
        self._describe = describe
        self._clock = clock
        self._wall_clock = wall_clock
        #: The device of the folder when checkpoints were found in it.
        self._device: int | None = None
        #: Whether nothing was found in the last scan.
        self._was_empty = False
        #: By their names for clients.
        self._watched: dict[str, _Watched] = {}
        #: The names in the order in which settled ones are compared next.
        self._turns: list[str] = []
        #: What was logged last about each folder or checkpoint.
        self._reported: dict[str, str] = {}
        #: Problems of folders as they were found last, and since when they are there.
        self._problem_since: dict[tuple[str, str], float] = {}

    def scan(self) -> bool:
        """Look at the folder. Returns whether there is more to describe, so that the next scan should follow soon."""
        try:
            found, problems = self._finder.find()
            self._refuse_other_mount(found)
        except FolderError as error:
            # It may be a network that is away. What is offered stays, so that no job fails.
            self._report_lasting({"": str(error)})
            return False
        if not found and not self._watched and not self._was_empty:
            log.info("folder_empty", folder=str(self._folder))
        self._was_empty = not found
        problems.update(self._add(found))
        self._report_lasting(problems)
        self._remove_missing(found, problems)
        for watched in self._due():
            self._compare(watched)
        return self._describe_settled()

    def offers(self) -> dict[str, Offered]:
        """What can be loaded, by name. The last step of each run carries the name of the run."""
        described = [watched for watched in self._watched.values() if watched.description is not None]
        latest: dict[str, int] = {}
        for watched in described:
            if watched.found.run_name and watched.found.step is not None:
                latest[watched.found.run_name] = max(watched.found.step, latest.get(watched.found.run_name, -1))
        return {watched.found.name: _offered(watched, latest) for watched in described}

    def _refuse_other_mount(self, found: Sequence[Found]) -> None:
        """Raise FolderError if the folder is empty because a file system is not mounted any more."""
        try:
            device = self._folder.stat().st_dev
        except OSError as error:
            raise FolderError(f"{self._folder} cannot be read: {error.strerror}") from error
        if found:
            self._device = device
        elif self._watched and device != self._device:
            raise FolderError(f"{self._folder} is empty, and on another file system than before")

    def _add(self, found: Iterable[Found]) -> dict[str, str]:
        """Watch what is new. Returns why some cannot be opened."""
        problems = {}
        for one in found:
            if one.name not in self._watched:
                try:
                    self._watched[one.name] = self._opened(one)
                except CheckpointError as error:
                    problems[one.argument] = str(error)
        return problems

    def _opened(self, found: Found, *, being_replaced: bool = False) -> _Watched:
        """Begin to watch a checkpoint. Raises CheckpointError."""
        if found.step is None or found.model_file is None:
            folder = find(found.argument, self._folder, name=found.name)
        else:
            model_file = Path(os.path.realpath(found.run), found.model_file.name)
            folder = step_folder(model_file.parent, found.step, model_file, name=found.name)
        files = CheckpointFiles(folder, being_replaced=being_replaced, clock=self._clock, wall_clock=self._wall_clock)
        return _Watched(found, folder, files)

    def _remove_missing(self, found: Iterable[Found], problems: Mapping[str, str]) -> None:
        by_name = {one.name: one for one in found}
        runs = {one.run for one in found}
        for name, watched in [*self._watched.items()]:
            one = watched.found
            is_missing = by_name.get(name) != one and (one.run in runs or _is_gone(watched.folder))
            if not is_missing or str(one.run) in problems:
                watched.missing_since = None
            elif watched.missing_since is None:
                watched.missing_since = self._clock()
            elif self._clock() - watched.missing_since >= SETTLED_AFTER_S:
                del self._watched[name]
                if watched.description is not None:
                    log.info("checkpoint_removed", checkpoint=name, path=str(one.run))

    def _compare(self, watched: _Watched) -> None:
        """Notice that files have changed, or that a link leads to other ones now."""
        if watched.files.changed():
            watched.is_described = False
        elif os.path.realpath(watched.found.run) != watched.real_path:
            with suppress(CheckpointError):
                other = self._opened(watched.found, being_replaced=True)
                watched.folder, watched.files, watched.real_path = other.folder, other.files, other.real_path
                watched.is_described = False

    def _due(self) -> list[_Watched]:
        """The checkpoints to compare now: those that are not described, and some others in turn."""
        if not self._turns:
            self._turns = [*self._watched]
        turn, self._turns = self._turns[:CHECKED_AT_ONCE], self._turns[CHECKED_AT_ONCE:]
        open_ones = {name for name, watched in self._watched.items() if not watched.is_described}
        return [self._watched[name] for name in {*turn, *open_ones} if name in self._watched]

    def _describe_settled(self) -> bool:
        """Describe what has settled, the last steps first, for a while. Returns whether some are left."""
        settled = sorted(
            (
                watched
                for watched in self._watched.values()
                if not watched.is_described
                and watched.missing_since is None
                and watched.files.unchanged_for(SETTLED_AFTER_S)
            ),
            key=lambda watched: watched.found.step or 0,
            reverse=True,
        )
        until = self._clock() + DESCRIBING_S
        for watched in settled:
            if self._clock() > until:
                return True
            self._describe_one(watched)
        return False

    def _describe_one(self, watched: _Watched) -> None:
        found = watched.found
        result = self._describe(watched.folder)
        if isinstance(result, Description):
            if watched.description is None:
                log.info("checkpoint_found", checkpoint=found.name, path=str(found.run))
            watched.description, watched.is_described = result, True
            self._reported.pop(found.argument, None)
            return
        # Its writer may only have paused.
        being_written = watched.files.seen_changing or watched.description is not None
        if being_written and not watched.files.unchanged_for(ABANDONED_AFTER_S):
            return
        watched.description, watched.is_described = None, True
        self._report(found.argument, result.reason)

    def _report(self, what: str, problem: str) -> None:
        """Log a problem once."""
        if self._reported.get(what) != problem:
            self._reported[what] = problem
            log.warning("checkpoint_not_offered" if what else "folder_not_read", reason=problem)

    def _report_lasting(self, problems: Mapping[str, str]) -> None:
        """Log the problems that are there for a while: files may be missing because they are being written."""
        now = self._clock()
        self._problem_since = {
            (what, problem): self._problem_since.get((what, problem), now) for what, problem in problems.items()
        }
        for (what, problem), since in self._problem_since.items():
            if now - since >= SETTLED_AFTER_S:
                self._report(what, problem)


def _is_gone(folder: CheckpointFolder) -> bool:
    """Whether a file of a checkpoint does not exist. False if that cannot be known."""
    for path in (folder.model_file, folder.meta_file):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
    return False


def _offered(watched: _Watched, latest: dict[str, int]) -> Offered:
    assert watched.description is not None
    found, description = watched.found, watched.description
    card = description.card
    if found.run_name and latest.get(found.run_name) == found.step:
        card = replace(card, latest_of=found.run_name)
    return Offered(argument=found.argument, offer=Offer(card, description.needed_bytes))
