"""Stop criteria: when a text ends because of stop ids, stop texts, a newline, or the number of tokens."""

from __future__ import annotations

from tasks.generation import FinishReason
from worker.engine.request import SequenceRequest
from worker.engine.vocabulary import Vocabulary


class StopMatcher:
    """Finds the first of several byte strings in a growing text, even if it spans several pieces."""

    def __init__(self, stops: tuple[bytes, ...]) -> None:
        """Raises ValueError for an empty stop text, which would match everywhere."""
        if not all(stops):
            raise ValueError("a stop text must not be empty")
        self._stops = stops
        self._overlap = max(map(len, stops), default=1) - 1
        self._tail = b""

    def push(self, piece: bytes) -> bool:
        """Add `piece` to the text. True if it completes a stop text; earlier ones do not count again."""
        text, old = self._tail + piece, len(self._tail)
        self._tail = text[len(text) - self._overlap :] if self._overlap < len(text) else text
        return any(text.find(stop, max(0, old - len(stop) + 1)) >= 0 for stop in self._stops)


def stop_ids(request: SequenceRequest, vocabulary: Vocabulary) -> frozenset[int]:
    """The ids that end a text without being part of it: the model's, unless it ignores them, and the request's."""
    of_model = frozenset() if request.sampling.ignore_eos else vocabulary.stop_ids
    return of_model.union(request.sampling.stop_token_ids)


class StopCriteria:
    """Checks each token of one sequence, in order, for the end of its text."""

    def __init__(self, request: SequenceRequest, vocabulary: Vocabulary) -> None:
        stops = tuple(text.encode() for text in request.sampling.stop)
        self._matcher = StopMatcher(stops) if stops else None
        self._vocabulary = vocabulary
        #: The ids that end the text, without being part of it.
        self.stop_ids = stop_ids(request, vocabulary)
        self._newline_ids = vocabulary.newline_ids if request.sampling.stop_on_newline else frozenset()
        self._left = request.sampling.max_tokens
        #: How many tokens the text must still get before a stop text or a newline can end it.
        self._needed = request.sampling.min_tokens or 0

    def is_stop(self, token: int) -> bool:
        """Whether `token` ends the text and is not part of it."""
        return token in self.stop_ids

    def push(self, token: int, *, in_text: bool = True) -> FinishReason | None:
        """Count `token` and return why the text ends after it, or None if it continues.

        A token that is not `in_text` is content of a tool: it counts, but no stop text and no newline is looked for.
        If several reasons apply, a stop text comes before a newline (the text is cut there), and both come before
        the token limit.
        """
        self._left -= 1
        self._needed -= 1
        if not in_text:
            return FinishReason.LENGTH if self._left <= 0 else None
        stopped = self._matcher is not None and self._matcher.push(self._vocabulary.text[token] or b"")
        if stopped and self._needed <= 0:
            return FinishReason.STOP
        if token in self._newline_ids and self._needed <= 0:
            return FinishReason.NEWLINE
        return FinishReason.LENGTH if self._left <= 0 else None
