"""The events of a stream in the wire format."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from api.http.sse import Cursor, Event
from api.jobs.job_view import job_response
from api.jobs.stream_state import StreamState
from celeriac.client.sse import SseParser
from tasks.generation import FinishReason
from tasks.job import ErrorCode, Job, JobError, Status
from tasks.store.replies import JobChanges
from tasks.token_log import Entry
from tests.helpers.job_objects import QUEUED
from tests.helpers.requests import make_generation

#: Every character at which Python splits lines, and so many clients of Server-Sent Events.
LINE_ENDS = "".join(line[-1] for line in "".join(map(chr, range(sys.maxunicode + 1))).splitlines(keepends=True)[:-1])
TEXT = f"a{LINE_ENDS}b😀"


def failed_job() -> Job:
    """A job that has line ends in every text."""
    return replace(
        QUEUED,
        status=Status.FAILED,
        checkpoint=TEXT,
        generation=make_generation(prompt=TEXT, stop=(TEXT,)),
        started_at=QUEUED.created_at,
        finished_at=QUEUED.created_at,
        expires_at=QUEUED.created_at,
        attempt=2,
        worker=TEXT,
        completion=TEXT,
        tokens=1,
        finish_reason=FinishReason.ERROR,
        error=JobError(ErrorCode.INTERNAL, TEXT, retryable=False),
        warnings=(TEXT,),
        metadata={TEXT: TEXT},
    )


def all_events() -> list[Event]:
    job = failed_job()
    state = StreamState(QUEUED, f"/{TEXT}", Cursor())
    entries = (
        Entry(after=1, k=0, token_ids=(1,), pieces=(TEXT,)),
        Entry(after=1, k=1, attempt=2),
        Entry(after=1, k=2, pieces=(TEXT,)),
    )
    running = JobChanges(Status.RUNNING, 1, TEXT, None, ())
    ended = JobChanges(Status.FAILED, 2, TEXT, None, entries, ended=job, end_id="1-3")
    return [*state.events(running), *state.events(ended)]


def test_the_line_ends_are_known() -> None:
    assert set(LINE_ENDS) == set("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")


def test_no_event_has_a_line_end_inside_its_data() -> None:
    names = []
    for event in all_events():
        text = event.encode().decode()
        assert text.splitlines() == text.split("\n")[:-1]
        names.append(event.name)
    assert names == ["status", "token", "attempt", "token", "problem", "done"]


def test_escapes_do_not_change_the_values() -> None:
    parser = SseParser()
    values = [json.loads(message.data) for event in all_events() for message in parser.feed(event.encode())]
    status, token, _, tail, error, done = values
    assert status["worker"] == token["text"] == tail["text"] == TEXT
    assert error["detail"] == f"Generation failed: {TEXT}"
    assert done == job_response(failed_job(), prefix=f"/{TEXT}").model_dump(mode="json")


@pytest.mark.parametrize("text", ["plain", "é 漢字 😀"])
def test_a_text_without_line_ends_is_sent_as_it_is(text: str) -> None:
    assert Event("token", f'{{"text":"{text}"}}', "1-0").encode() == (
        f'event: token\ndata: {{"text":"{text}"}}\nid: 1-0\n\n'.encode()
    )
