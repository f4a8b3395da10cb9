"""The events of a response: their order, and numbers that do not depend on how the log was read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from api.openai.choice_reader import ChoiceReader, ReadOptions
from api.openai.response_events import ResponseEvents
from api.openai.response_record import ResponseRecord
from api.openai.token_names import TokenNames
from api.schemas.openai.responses import ResponseEvent
from tasks.chat import Message
from tasks.generation import FinishReason, Generation
from tasks.job import ErrorCode, Job, JobError, Status
from tasks.sampling_params import SamplingParams
from tasks.store.replies import JobChanges
from tasks.token_log import Entry
from tests.helpers.job_objects import QUEUED, RUNNING, SUCCEEDED
from tests.unit.api.openai.vocabulary import VOCABULARY

RECORD = ResponseRecord(
    own_messages=1,
    has_instructions=False,
    previous_response_id=None,
    background=True,
    store=True,
    service_tier="auto",
    max_output_tokens=None,
)
GENERATION = Generation(messages=(Message("user", "Hi"),), sampling=SamplingParams(seed=1))
METADATA = {"run": "7", **RECORD.to_metadata()}
#: `a`, two parts of a character, `€`, `b`, and a last piece of text.
LOG = (
    Entry(after=4, k=0, token_ids=(0, 2, 3, 4), pieces=("a", "", "", "€")),
    Entry(after=4, k=1, attempt=2),
    Entry(after=5, k=0, token_ids=(1,), pieces=("b",)),
    Entry(after=5, k=1, pieces=("!",)),
)
ENDED = replace(
    SUCCEEDED, generation=GENERATION, metadata=METADATA, tokens=5, completion="a€b!", finish_reason=FinishReason.STOP
)


def running(entries: Sequence[Entry]) -> JobChanges:
    return JobChanges(Status.RUNNING, 1, "w", None, tuple(entries))


def ended(job: Job, entries: Sequence[Entry] = ()) -> JobChanges:
    return JobChanges(job.status, 1, "w", None, tuple(entries), ended=job, end_id="5-2")


def events_of(first: Job, changes: Iterable[JobChanges]) -> list[ResponseEvent]:
    names = TokenNames(VOCABULARY)
    job = replace(first, generation=GENERATION, metadata=METADATA)
    events = ResponseEvents(job, RECORD, ChoiceReader(GENERATION, ReadOptions(names=names)), names)
    return [*events.opening(), *(event for one in changes for event in events.of(one))]


def numbers(events: list[ResponseEvent]) -> list[tuple[str, int]]:
    return [(event.type.removeprefix("response."), event.sequence_number) for event in events]


def test_a_whole_stream() -> None:
    events = events_of(QUEUED, [running(LOG[:1]), ended(ENDED, LOG[1:])])
    assert numbers(events) == [
        ("created", 0),
        ("queued", 1),
        ("in_progress", 2),
        ("output_item.added", 3),
        ("content_part.added", 4),
        ("output_text.delta", 5),
        ("output_text.delta", 8),
        ("output_text.delta", 9),
        ("output_text.delta", 10),
        ("output_text.done", 11),
        ("content_part.done", 12),
        ("output_item.done", 13),
        ("completed", 14),
    ]
    assert [event.delta for event in events if event.delta is not None] == ["a", "€", "b", "!"]
    assert [event.text for event in events if event.text is not None] == ["a€b!"]
    first, last = events[0].response, events[-1].response
    assert first is not None
    assert last is not None
    assert (first.status, first.output, first.usage) == ("queued", [], None)
    assert (last.status, last.output[0].content[0].text, last.metadata) == ("completed", "a€b!", {"run": "7"})
    assert last.usage is not None
    assert (last.usage.input_tokens, last.usage.output_tokens) == (5, 5)


def test_numbers_do_not_depend_on_how_the_log_was_read() -> None:
    """Another process reads the same log at another time, and in other parts."""
    parts: list[Entry] = []
    for entry in LOG:
        if len(entry.token_ids) > 1:
            head = replace(entry, after=entry.after - 3, token_ids=entry.token_ids[:1], pieces=entry.pieces[:1])
            parts += [head, entry.cut(1)]
        else:
            parts.append(entry)
    single = events_of(RUNNING, [*(running([part]) for part in parts), ended(ENDED)])
    whole = events_of(RUNNING, [ended(ENDED, LOG)])
    assert numbers(single) == numbers(whole)
    assert [event.delta for event in single] == [event.delta for event in whole]


def test_numbers_grow() -> None:
    found = [event.sequence_number for event in events_of(QUEUED, [ended(ENDED, LOG)])]
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("job", "last", "status"),
    [
        (replace(ENDED, finish_reason=FinishReason.LENGTH), "incomplete", "incomplete"),
        (replace(ENDED, status=Status.CANCELLED, finish_reason=FinishReason.CANCELLED), "incomplete", "cancelled"),
        (
            replace(
                ENDED,
                status=Status.FAILED,
                finish_reason=FinishReason.ERROR,
                error=JobError(ErrorCode.OUT_OF_MEMORY, "Too large.", retryable=True),
            ),
            "failed",
            "failed",
        ),
    ],
)
def test_other_ends(job: Job, last: str, status: str) -> None:
    events = events_of(RUNNING, [ended(job, LOG)])
    assert events[-1].type == f"response.{last}"
    response = events[-1].response
    assert response is not None
    assert response.status == status
    assert (response.incomplete_details is not None) == (status == "incomplete")
    assert (response.error is not None) == (status == "failed")
    # The text so far is closed in any case.
    assert "response.output_item.done" in [event.type for event in events]


def test_a_response_without_text() -> None:
    none = replace(ENDED, tokens=0, completion="")
    assert [kind for kind, _ in numbers(events_of(QUEUED, [ended(none)]))] == [
        "created",
        "queued",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    failed = replace(none, status=Status.FAILED, error=JobError(ErrorCode.INTERNAL, "It failed.", retryable=True))
    assert [kind for kind, _ in numbers(events_of(QUEUED, [ended(failed)]))] == ["created", "queued", "failed"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"own_messages": 3}', RECORD.to_metadata()["celeriac.response"][:-1]])
def test_metadata_of_other_routes_make_no_response(text: str) -> None:
    assert ResponseRecord.of(replace(ENDED, metadata={"celeriac.response": text})) is None
    assert ResponseRecord.of(ENDED) == RECORD
