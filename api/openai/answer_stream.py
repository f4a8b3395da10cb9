"""The chunk stream of a call: nothing but blocks of data, and `[DONE]` at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from api.http.openai_errors import openai_body
from api.http.problems import ApiError
from api.http.sse import BLANK_LINE, data_block
from api.jobs.responses import unsuccessful
from api.openai.answer_format import AnswerFormat, AnswerHead, stop_reason
from api.openai.call import Call
from api.openai.choice_reader import ChoiceReader
from api.openai.group_watch import ChoiceChanges, GroupWatch
from api.openai.token_names import TokenNames
from api.openai.usage import usage_of
from tasks.job import Job, Status

#: The last block of every stream.
DONE = data_block("[DONE]")
#: An empty line is sent after this time without a chunk, in seconds.
KEEP_ALIVE_S = 15.0
#: An error within this time before the first chunk, in seconds, still gets a status of its own.
HOLD_S = 1.0


@dataclass(slots=True)
class _Choice:
    """One choice of the stream."""

    reader: ChoiceReader
    opened: bool = False
    #: The job as it was read last; None before that.
    job: Job | None = None


class AnswerStream:
    """One stream. Iterate over `blocks` once."""

    def __init__(
        self,
        call: Call,
        answers: AnswerFormat,
        head: AnswerHead,
        readers: Sequence[ChoiceReader],
        names: TokenNames | None,
        *,
        prefix: str,
        read_job: Callable[[int], Awaitable[Job | None]],
        cancel_rest: Callable[[], Awaitable[None]],
    ) -> None:
        """`names` None: without log-probabilities. `prefix`: the path prefix that a proxy adds.

        `read_job` reads the job of a choice, for token counts before its end. `cancel_rest` is called if a job does not
        succeed.
        """
        self._call = call
        self._answers = answers
        self._head = head
        self._choices = [_Choice(reader) for reader in readers]
        self._names = names
        self._prefix = prefix
        self._read_job = read_job
        self._cancel_rest = cancel_rest

    async def blocks(self, group: GroupWatch) -> AsyncGenerator[bytes]:
        """The stream in the wire format. The first item may be empty: it means that the answer has begun.

        Raises ApiError for an error before the first item. Any later error is a block of the stream.
        """
        begun = False
        async with group:
            try:
                left = len(self._choices)
                while left:
                    found = await group.next(KEEP_ALIVE_S if begun else HOLD_S)
                    if found is None:
                        yield BLANK_LINE if begun else b""
                        begun = True
                        continue
                    await self._count(found)
                    if blocks := b"".join(map(self._encoded, self._chunks(found))):
                        yield blocks
                        begun = True
                    job = found.changes.ended
                    if job is not None and job.status is not Status.SUCCEEDED:
                        raise unsuccessful(job, self._prefix)
                    left -= job is not None
            except ApiError as error:
                await self._cancel_rest()
                if not begun:
                    raise
                yield data_block(json.dumps(openai_body(error))) + DONE
                return
        last = self._encoded(self._answers.counts(self._head), counts=True) if self._call.include_usage else b""
        yield last + DONE

    async def _count(self, found: ChoiceChanges) -> None:
        """Keep the token counts of a job up to date. Without `continuous_usage` only those of its end are needed."""
        choice, changes = self._choices[found.choice], found.changes
        if changes.ended is not None:
            choice.job = changes.ended
        elif self._call.continuous_usage and changes.entries:
            choice.job = choice.job or await self._read_job(found.choice)
            if choice.job is not None:
                choice.job = replace(choice.job, tokens=changes.entries[-1].after)

    def _chunks(self, found: ChoiceChanges) -> Iterator[BaseModel]:
        """The chunks of these changes."""
        index, changes = found
        choice = self._choices[index]
        pieces = list(choice.reader.read(changes.entries))
        job = changes.ended
        succeeded = job is not None and job.status is Status.SUCCEEDED
        if succeeded:
            pieces += choice.reader.prompt()
        if not choice.opened and (pieces or succeeded):
            choice.opened = True
            if (opening := self._answers.opening(self._head, index)) is not None:
                yield opening
        for piece in pieces:
            yield self._answers.chunk(self._head, index, piece, self._names)
        if job is not None and succeeded:
            reason = stop_reason(job, prompt_only=self._call.prompt_only)
            yield self._answers.closing(self._head, index, job, reason)

    def _encoded(self, chunk: BaseModel, *, counts: bool = False) -> bytes:
        """A chunk in the wire format: with `usage` if it was asked for, which is null where there are no counts."""
        if self._call.include_usage:
            jobs = [choice.job for choice in self._choices if choice.job is not None]
            given = counts or self._call.continuous_usage
            usage = usage_of(jobs, prompt_only=self._call.prompt_only) if given else None
            chunk = chunk.model_copy(update={"usage": usage})
        return data_block(chunk.model_dump_json(exclude_unset=True))
