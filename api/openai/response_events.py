"""The events of a response's stream, with sequence numbers that any API process gives them.

The number of an event depends only on the log of the job: it counts tokens, not events. So a client that continues a
stream at another process, which may have read the log in other parts, neither misses a token nor gets one twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from api.http.openai_errors import openai_body
from api.http.problems import ApiError
from api.openai.choice_reader import ChoiceReader, Piece
from api.openai.response_object import message, output_text, piece_logprobs, response_object, response_status
from api.openai.response_record import ResponseRecord, item_id
from api.openai.token_names import TokenNames
from api.schemas.openai.responses import ModelResponse, OutputText, ResponseEvent, ResponseStatus
from tasks.job import Job, Status
from tasks.store.replies import JobChanges
from tasks.token_log import Entry

#: Numbers of the events before the first token. That of a delta is `PART` and the number of tokens so far.
CREATED, QUEUED, IN_PROGRESS, ITEM, PART = range(5)
#: What is added to `PART` and the number of all tokens: for a last piece of text that belongs to no token, and for the
#: events after it.
TAIL, TEXT_DONE, PART_DONE, ITEM_DONE, OVER, ERROR = range(1, 7)

#: The last event of a stream, by the status of the response. There is none of its own for a cancelled one.
_LAST = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}


@dataclass(slots=True)
class ResponseEvents:
    """Makes the events of one response, from the beginning of its log."""

    #: The job as it was when the stream began.
    job: Job
    record: ResponseRecord
    reader: ChoiceReader
    names: TokenNames
    _running: bool = False
    _tokens: int = 0
    _pieces: list[Piece] = field(default_factory=list)
    _opened: bool = False

    def opening(self) -> Iterator[ResponseEvent]:
        """The events before the first changes."""
        queued = self.job.status is Status.QUEUED
        first = self._shown("queued" if queued else "in_progress")
        yield _event("response.created", CREATED, response=first)
        if queued:
            yield _event("response.queued", QUEUED, response=first)

    def of(self, changes: JobChanges) -> Iterator[ResponseEvent]:
        """The events of these changes."""
        if not self._running and (changes.status is Status.RUNNING or changes.entries):
            self._running = True
            yield _event("response.in_progress", IN_PROGRESS, response=self._shown("in_progress"))
        for entry in changes.entries:
            for part in _single_tokens(entry):
                yield from self._deltas(part)
        if changes.ended is not None:
            yield from self._ending(changes.ended)

    def error(self, error: ApiError) -> ResponseEvent:
        """The event for a stream that cannot continue."""
        detail = openai_body(error)["error"]
        return _event(
            "error",
            PART + self._tokens + ERROR,
            code=detail["code"],
            message=detail["message"],
            param=detail["param"],
        )

    def _deltas(self, entry: Entry) -> Iterator[ResponseEvent]:
        self._tokens = entry.after
        for piece in self.reader.read([entry]):
            yield from self._item()
            self._pieces.append(piece)
            yield self._in_item(
                "response.output_text.delta",
                PART + self._tokens + (0 if entry.token_ids else TAIL),
                delta=piece.text,
                logprobs=piece_logprobs(piece, self.names),
            )

    def _item(self) -> Iterator[ResponseEvent]:
        """The events that open the message, before its first delta."""
        if self._opened:
            return
        self._opened = True
        opened = message(self.job, (), self.names).model_copy(update={"status": "in_progress", "content": []})
        yield _event("response.output_item.added", ITEM, output_index=0, item=opened)
        yield self._in_item("response.content_part.added", PART, part=OutputText(text="", annotations=[], logprobs=[]))

    def _ending(self, job: Job) -> Iterator[ResponseEvent]:
        status = response_status(job)
        if status in ("completed", "incomplete"):
            yield from self._item()
        at = PART + self._tokens
        if self._opened:
            text = output_text(self._pieces, self.names)
            yield self._in_item("response.output_text.done", at + TEXT_DONE, text=text.text, logprobs=text.logprobs)
            yield self._in_item("response.content_part.done", at + PART_DONE, part=text)
            item = message(job, self._pieces, self.names)
            yield _event("response.output_item.done", at + ITEM_DONE, output_index=0, item=item)
        over = response_object(job, self.record, self._pieces, self.names)
        yield _event(_LAST[status], at + OVER, response=over)

    def _shown(self, status: ResponseStatus) -> ModelResponse:
        return response_object(self.job, self.record, (), self.names, status=status)

    def _in_item(self, kind: str, number: int, **members: Any) -> ResponseEvent:
        return _event(kind, number, item_id=item_id(self.job.id), output_index=0, content_index=0, **members)


def _event(kind: str, number: int, **members: Any) -> ResponseEvent:
    return ResponseEvent(type=kind, sequence_number=number, **members)


def _single_tokens(entry: Entry) -> Iterator[Entry]:
    """An entry as several ones with one token each; an entry without tokens as it is."""
    if not entry.token_ids:
        yield entry
        return
    records = entry.logprobs_of_tokens()
    for index, token in enumerate(entry.token_ids):
        yield replace(
            entry,
            after=entry.before + index + 1,
            token_ids=(token,),
            pieces=(entry.pieces[index],),
            logprobs=records[index] if records else b"",
        )
