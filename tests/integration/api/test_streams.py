"""Streams of `GET /v1/jobs/{id}/stream` and `POST /generate` over real connections. The test plays the worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from api.jobs import job_stream
from tasks.job import ErrorCode, JobError, Status, TimeLimits
from tests.conftest import running_redis
from tests.helpers.api_client import eventually, server, settings_for
from tests.helpers.event_streams import Event, stream, text_of
from tests.helpers.fake_worker import fake_worker
from tests.integration.conftest import WORKER, QueueWorld, queue_world

pytestmark = pytest.mark.anyio

T = TypeVar("T")

BODY = {"prompt": "123+456=", "temperature": 0.0}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
async def url(queue: QueueWorld) -> AsyncIterator[str]:
    """The URL of a server on the test's queue."""
    with server(settings_for(queue.settings.redis_url, bell_poll_s=0.2)) as url:
        yield url


def stream_url(url: str, job_id: str) -> str:
    return f"{url}/v1/jobs/{job_id}/stream"


def get(url: str, **arguments: Any) -> httpx.Response:
    """A blocking request. The server runs in a thread of its own, so it can answer while this thread is blocked."""
    return httpx.get(url, **arguments)


def post(url: str, **arguments: Any) -> httpx.Response:
    return httpx.post(url, **arguments)


async def in_thread(read: Callable[[], T]) -> T:
    """Read in a thread, because the event loop may be needed for what the read waits for."""
    return await asyncio.to_thread(read)


def all_events(url: str, **arguments: Any) -> list[Event]:
    with stream(url, **arguments) as reader:
        return reader.rest()


async def finished_job(queue: QueueWorld) -> str:
    """A job with two attempts: `579!` in three entries, an attempt mark between them, and a last piece of text."""
    queue.register()
    job_id = await queue.running()
    queue.append(job_id, "57")
    queue.workers.release(job_id, 1)
    queue.claim(job_id)
    queue.append(job_id, "9", before=2, attempt=2)
    queue.finish(job_id, "!", before=3, attempt=2, tail="é", completion="579!é")
    return job_id


async def test_a_finished_job_is_streamed_from_its_beginning_to_its_end(queue: QueueWorld, url: str) -> None:
    job_id = await finished_job(queue)
    with stream(stream_url(url, job_id)) as reader:
        assert reader.answer.headers["cache-control"] == "no-store"
        assert reader.answer.headers["x-accel-buffering"] == "no"
        assert reader.answer.headers["x-job-id"] == job_id
        assert reader.answer.headers["location"] == f"/v1/jobs/{job_id}"
        assert "content-length" not in reader.answer.headers
        events = reader.rest()
    received = [(event.name, event.id, event.data) for event in events[:-1]]
    assert received == [
        ("token", "2-0", {"offset": 0, "count": 2, "text": "57"}),
        ("attempt", "2-1", {"attempt": 2, "resumed_from": 2}),
        ("token", "3-0", {"offset": 2, "count": 1, "text": "9"}),
        ("token", "4-0", {"offset": 3, "count": 1, "text": "!"}),
        ("token", "4-1", {"offset": 4, "count": 0, "text": "é"}),
    ]
    assert (events[-1].name, events[-1].id) == ("done", "4-2")
    assert events[-1].data == get(f"{url}/v1/jobs/{job_id}").json()
    assert events[-1].data["output"]["completion"] == text_of(events)


async def test_the_stream_begins_with_the_reconnect_delay(queue: QueueWorld, url: str) -> None:
    body = get(stream_url(url, await finished_job(queue))).text
    assert body.startswith("retry: 2000\n\n")
    assert body.endswith("\n\n")


async def test_a_reconnect_gets_exactly_the_rest_and_204_after_the_end(queue: QueueWorld, url: str) -> None:
    address = stream_url(url, await finished_job(queue))
    everything = all_events(address)
    for index, event in enumerate(everything):
        assert event.id is not None
        if event.name == "done":
            for arguments in ({"headers": {"Last-Event-ID": event.id}}, {"params": {"starting_after": event.id}}):
                answer = get(address, **arguments)
                assert (answer.status_code, answer.content) == (204, b"")
        else:
            rest = everything[index + 1 :]
            assert all_events(address, headers={"Last-Event-ID": event.id}) == rest
            assert all_events(address, params={"starting_after": event.id}) == rest
    # A number of tokens is enough, even inside an event.
    for tokens in range(5):
        events = all_events(address, params={"starting_after": str(tokens)})
        assert text_of(events) == "579!é"[tokens:]
        assert events[-1].name == "done"
    # The query overrides the header.
    both = all_events(address, params={"starting_after": "3"}, headers={"Last-Event-ID": "4-2"})
    assert text_of(both) == "!é"


@pytest.mark.parametrize("cursor", ["x", "-1", "1-", "1-2-3", "1.5", "٣", "9" * 40])
async def test_a_malformed_position_is_refused(queue: QueueWorld, url: str, cursor: str) -> None:
    address = stream_url(url, await finished_job(queue))
    query = get(address, params={"starting_after": cursor})
    assert (query.status_code, query.json()["errors"][0]["parameter"]) == (422, "starting_after")
    header = get(address, headers={"Last-Event-ID": cursor.encode()})
    assert (header.status_code, header.json()["errors"][0]["header"]) == (422, "last-event-id")


async def test_an_unknown_job_is_404_and_a_deleted_one_410(queue: QueueWorld, url: str) -> None:
    job_id = await finished_job(queue)
    await queue.jobs.delete(job_id)
    gone = get(stream_url(url, job_id))
    assert (gone.status_code, gone.json()["code"]) == (410, "gone")
    for other in ("job_01JZ8K6T4V9QABCDEFGHJKMNPQ", "not-an-id"):
        unknown = get(stream_url(url, other))
        assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")


async def test_a_live_job_is_streamed_as_it_changes(queue: QueueWorld, url: str) -> None:
    queue.register()
    job_id = await queue.submit()
    with stream(stream_url(url, job_id)) as reader:
        [queued] = await in_thread(lambda: reader.take("status"))
        assert queued.data == {"status": "queued", "attempt": 0, "worker": None}
        queue.claim(job_id)
        [running] = await in_thread(lambda: reader.take("status"))
        assert running.data == {"status": "running", "attempt": 1, "worker": WORKER.name}
        assert running.id is None
        tokens = []
        for index, char in enumerate("579"):
            queue.append(job_id, char, before=index)
            tokens += await in_thread(lambda: reader.take("token"))
        queue.workers.release(job_id, 1)
        [queued_again] = await in_thread(lambda: reader.take("status"))
        assert queued_again.data == {"status": "queued", "attempt": 1, "worker": None}
        queue.claim(job_id)
        resumed, mark = await in_thread(lambda: reader.take("status", "attempt"))
        assert resumed.data == {"status": "running", "attempt": 2, "worker": WORKER.name}
        assert (mark.data, mark.id) == ({"attempt": 2, "resumed_from": 3}, "3-1")
        queue.finish(job_id, "!", before=3, attempt=2, completion="579!")
        tokens += await in_thread(lambda: reader.take("token"))
        [done] = await in_thread(lambda: reader.take("done"))
        assert await in_thread(reader.next) is None
    assert text_of(tokens) == done.data["output"]["completion"] == "579!"
    # A new job that is first in the queue gets one `queue` event.
    assert [place["position"] for place in reader.queue[:1]] == [0]


async def test_a_change_of_the_position_is_sent_at_most_once_a_second(queue: QueueWorld, url: str) -> None:
    queue.register(slots=1)
    jobs = [await queue.submit() for _ in range(8)]
    times = []
    with stream(stream_url(url, jobs[-1])) as reader:

        def place() -> dict[str, Any]:
            while (event := reader.any()) is not None:
                if event.name == "queue":
                    times.append(time.monotonic())
                    return event.data
            raise AssertionError("the stream ended")

        first = await in_thread(place)
        assert first.keys() == {"position", "tokens_ahead", "eta_start_s", "eta_finish_s", "as_of"}
        assert (first["position"], first["tokens_ahead"]) == (7, 7 * 8)
        assert (first["eta_start_s"], first["eta_finish_s"]) == (None, None)
        for job_id in jobs[:3]:
            queue.claim(job_id)
            queue.finish(job_id, "5")
        later = await in_thread(place)
        while later["position"] != 4:
            later = await in_thread(place)
        assert later["eta_finish_s"]["p50"] <= later["eta_finish_s"]["p90"]
    gaps = [after - before for before, after in pairwise(times)]
    # The server waits 1 s between two sends; the reader may see a little less.
    assert gaps
    assert min(gaps) > 0.8


@pytest.mark.parametrize(
    ("status", "error", "names"),
    [
        (Status.FAILED, JobError(ErrorCode.INTERNAL, "Broken.", retryable=True), ["token", "problem", "done"]),
        (Status.CANCELLED, None, ["token", "done"]),
    ],
)
async def test_the_stream_of_a_job_that_fails_or_is_cancelled(
    queue: QueueWorld, url: str, status: Status, error: JobError | None, names: list[str]
) -> None:
    queue.register()
    job_id = await queue.running()
    with stream(stream_url(url, job_id)) as reader:
        await in_thread(lambda: reader.take("status"))
        queue.finish(job_id, "5", status=status, error=error)
        events = await in_thread(reader.rest)
    assert [event.name for event in events] == names
    assert events[-1].data["status"] == status
    if error is not None:
        problem = events[-2].data
        assert (problem["code"], problem["status"], problem["job_id"]) == ("internal", 500, job_id)
        assert events[-2].id is None


async def test_the_stream_of_a_job_that_expires_in_the_queue(queue: QueueWorld, url: str) -> None:
    job_id = await queue.submit(limits=TimeLimits(queue_timeout_ms=300))
    events = await in_thread(lambda: all_events(stream_url(url, job_id)))
    assert [event.name for event in events] == ["status", "problem", "done"]
    assert events[1].data["code"] == "start_timeout"
    assert (events[2].data["status"], events[2].id) == ("expired", "0-1")


async def test_the_stream_of_a_deleted_job_ends_without_done(queue: QueueWorld, url: str) -> None:
    queue.register()
    job_id = await queue.running()
    with stream(stream_url(url, job_id)) as reader:
        await in_thread(lambda: reader.take("status"))
        await queue.jobs.delete(job_id)
        events = await in_thread(reader.rest)
    assert [(event.name, event.data["code"], event.data["status"]) for event in events] == [("problem", "gone", 410)]


async def test_if_redis_loses_its_data_the_stream_ends_with_job_lost(queue: QueueWorld, url: str) -> None:
    queue.register()
    job_id = await queue.running()
    with stream(stream_url(url, job_id)) as reader:
        await in_thread(lambda: reader.take("status"))
        queue.redis.flushall()
        events = await in_thread(reader.rest)
    assert [(event.name, event.data["code"], event.data["status"]) for event in events] == [
        ("problem", "job_lost", 503)
    ]


async def test_a_silent_stream_gets_comments(queue: QueueWorld, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_stream, "KEEP_ALIVE_S", 0.05)
    queue.register()
    job_id = await queue.running()
    with stream(stream_url(url, job_id)) as reader:
        await in_thread(lambda: reader.take("status"))

        tokens = 0
        # The reader sees comments only while it waits for an event.
        while len(reader.comments) < 3:
            queue.append(job_id, "x", before=tokens)
            tokens += 1
            await in_thread(lambda: reader.take("token"))
            await asyncio.sleep(0.06)
        queue.finish(job_id, before=tokens)
        await in_thread(reader.rest)
    assert set(reader.comments) == {": ka"}


async def test_a_stream_survives_a_restart_of_redis_during_which_a_new_one_is_503(
    tmp_path: Path, socket_folder: Path
) -> None:
    folder = socket_folder / "streams"
    folder.mkdir()
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    settings = settings_for(f"unix://{folder}/redis.sock?db=0", bell_poll_s=0.2)
    with server(settings) as url:
        with running_redis(folder, *durable):
            async with queue_world(settings.redis_url) as queue:
                queue.register()
                job_id = await queue.running()
                queue.append(job_id, "57")
                streaming = stream(stream_url(url, job_id))
                reader = streaming.__enter__()
                events = await in_thread(lambda: reader.take("status", "token"))
        refused = await in_thread(lambda: get(stream_url(url, job_id)))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        with running_redis(folder, *durable):
            async with queue_world(settings.redis_url) as queue:
                queue.append(job_id, "9", before=2)
                queue.finish(job_id, "!", before=3, completion="579!")
                events += await in_thread(reader.rest)
        streaming.__exit__(None, None, None)
    assert text_of(events) == "579!"
    assert events[-1].name == "done"


def generate(url: str, **headers: str) -> Any:
    return stream(f"{url}/generate", method="POST", json=BODY, headers={**EVENTS, **headers})


async def test_generate_streams_if_accept_names_the_type(redis_url: str) -> None:
    settings = settings_for(redis_url)
    with fake_worker(settings), server(settings) as url:
        for accept in ("text/event-stream", "application/json;q=0.5, Text/Event-Stream; q=0.9"):
            with stream(f"{url}/generate", method="POST", json=BODY, headers={"Accept": accept}) as reader:
                events = reader.rest()
            assert text_of(events) == "579"
            assert events[-1].data["output"]["generated_text"] == "123+456=579"
        some = "application/json, text/event-stream;q=0.1"
        for accept in ("*/*", "application/json", "text/event-stream;q=0", some, "text/*"):
            plain = post(f"{url}/generate", json=BODY, headers={"Accept": accept})
            assert plain.json()["generated_text"] == "123+456=579"
        wrong = post(f"{url}/generate", json={}, headers=EVENTS)
        assert (wrong.status_code, wrong.json()["detail"][0]["loc"]) == (422, ["body", "prompt"])


async def test_a_client_that_ends_lines_at_all_separators_of_unicode_reads_the_text(redis_url: str) -> None:
    """The reader of these tests does so, as `iter_lines` of httpx does."""
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\nk"
    settings = settings_for(redis_url)
    with fake_worker(settings, say=lambda _: text), server(settings) as url, generate(url) as reader:
        events = reader.rest()
    assert text_of(events) == text
    assert events[-1].data["output"]["completion"] == text


async def test_a_client_that_disconnects_from_a_streamed_generate_cancels_its_job_at_once(redis_url: str) -> None:
    settings = settings_for(redis_url)
    with fake_worker(settings) as worker, server(settings) as url:
        worker.go.clear()
        with generate(url) as reader:
            # Wait until the stream has begun.
            reader.take("status")
            job_id = reader.answer.headers["x-job-id"]
            assert worker.claimed.get(timeout=10) == job_id
        await asyncio.to_thread(eventually, lambda: get(f"{url}/v1/jobs/{job_id}").json()["status"] == "cancelled")


async def test_with_a_key_the_job_continues_and_the_stream_can_be_continued(redis_url: str) -> None:
    settings = settings_for(redis_url)
    key = {"Idempotency-Key": '"k"'}
    with fake_worker(settings) as worker, server(settings) as url:
        worker.go.clear()
        with generate(url, **key) as reader:
            event = reader.next()
            while event is None or event.name != "token":
                event = reader.next()
            job_id = reader.answer.headers["x-job-id"]
        worker.go.set()
        with generate(url, **key, **{"Last-Event-ID": event.id or ""}) as reader:
            assert reader.answer.headers["x-job-id"] == job_id
            assert reader.answer.headers["idempotency-replayed"] == "true"
            rest = reader.rest()
        assert event.data["text"] + text_of(rest) == "579"
        done = {**EVENTS, **key, "Last-Event-ID": rest[-1].id or ""}
        assert post(f"{url}/generate", json=BODY, headers=done).status_code == 204


async def test_a_client_that_disconnects_from_a_stream_changes_nothing(redis_url: str) -> None:
    settings = settings_for(redis_url)
    with fake_worker(settings) as worker, server(settings) as url:
        worker.go.clear()
        job = post(f"{url}/v1/jobs", json=BODY).json()
        assert worker.claimed.get(timeout=10) == job["id"]
        with stream(f"{url}{job['urls']['stream']}") as reader:
            reader.next()
        # If the disconnect changed anything, it would do this before the answer to a later request.
        later = post(f"{url}/v1/jobs", json=BODY).json()
        assert get(f"{url}/v1/jobs/{job['id']}").json()["status"] == "running"
        worker.go.set()
        assert get(f"{url}{later['urls']['result']}", params={"wait": 10}).status_code == 200
        assert get(f"{url}/v1/jobs/{job['id']}").json()["status"] == "succeeded"
