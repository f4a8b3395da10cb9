"""The report of a step to the engine's owner."""

from __future__ import annotations

from dataclasses import dataclass

from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence
from worker.engine.update import Update


@dataclass(frozen=True, slots=True)
class StepReport:
    """The result of a step."""

    #: One for each sequence that got tokens or ended since the last report; empty while they are held.
    updates: list[Update]
    #: Whether the updates wait for the next report.
    held: bool
    #: Positions that went through the model: decoded ones, and those of prompts.
    decoded: int
    prefilled: int


class Unreported:
    """The tokens and ends of sequences that no report contains yet."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._ended: list[Sequence] = []

    @property
    def has_ends(self) -> bool:
        """Whether a sequence has ended since the last report."""
        return bool(self._ended)

    @property
    def is_urgent(self) -> bool:
        """Whether a sequence has ended or got its first token since the last report."""
        return bool(self._ended) or any(one.tokens and not one.reported for one in self._scheduler.running)

    def add_end(self, sequence: Sequence) -> None:
        """Add a sequence that has ended."""
        self._ended.append(sequence)

    def take(self) -> list[Update]:
        """One update for each sequence that got tokens or ended since the last call."""
        running = [one for one in self._scheduler.running if len(one.tokens) > one.reported]
        ended, self._ended = self._ended, []
        updates = []
        for sequence in running + ended:
            tokens = tuple(sequence.tokens[sequence.reported :])
            is_first = sequence.reported == len(sequence.request.generated)
            sequence.reported = len(sequence.tokens)
            update = Update(sequence.id, tokens, sequence.finish, sequence.error)
            if is_first or sequence.finish is not None or sequence.logprobs:
                update = update._replace(
                    logprobs=sequence.take_logprobs(),
                    prompt_logprobs=sequence.take_prompt_logprobs(),
                    stop_id=sequence.stop_id,
                    cached_tokens=sequence.cached_tokens if is_first else None,
                )
            updates.append(update)
        return updates
