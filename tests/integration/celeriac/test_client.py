"""The clients against the real API, with a fake worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass

import pytest

from celeriac import (
    ApiError,
    AsyncInferenceClient,
    DoneEvent,
    InferenceClient,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    QueueEvent,
    QueueFullError,
    StatusEvent,
    TokenEvent,
    UnavailableError,
    WaitTimeoutError,
)
from celeriac.client import protocol
from tasks.job import ErrorCode, JobError
from tests.helpers.api_client import eventually, server, settings_for
from tests.helpers.fake_worker import FakeWorker, fake_worker


@dataclass
class World:
    url: str
    client: InferenceClient
    worker: FakeWorker


@pytest.fixture
def world(redis_url: str) -> Iterator[World]:
    settings = settings_for(redis_url, bell_poll_s=0.2)
    worker = FakeWorker(settings)
    worker.start()
    try:
        with server(settings) as url, InferenceClient(url) as client:
            yield World(url, client, worker)
    finally:
        worker.stop()


def test_the_calls_of_the_guide(world: World) -> None:
    assert world.client.health() == {"status": "ok", "model_loaded": True, "checkpoint": "step_002920"}
    assert world.client.info()["vocab_size"] == 32
    result = world.client.generate("123+456=", max_tokens=20, temperature=0.0)
    assert result == {
        "prompt": "123+456=",
        "generated_text": "123+456=579",
        "tokens_generated": 3,
        "model": "step_002920",
    }


def test_a_generation_that_takes_longer_than_one_request(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LONG_POLL_S", 0.3)
    world.worker.go.clear()
    threading.Timer(1.0, world.worker.go.set).start()
    assert world.client.generate("1+1=")["generated_text"] == "1+1=2"


def test_submit_wait_and_list(world: World) -> None:
    world.worker.go.clear()
    job = world.client.submit("12+34=", metadata={"run": "7"}, seed=5)
    with pytest.raises(WaitTimeoutError):
        world.client.wait(job, timeout=0.1)
    assert [listed.id for listed in world.client.jobs()] == [job.id]
    assert world.client.jobs("failed") == []
    world.worker.go.set()
    done = world.client.wait(job.id, timeout=10)
    assert (done.status, done.text, done.seed, done.metadata) == ("succeeded", "46", 5, {"run": "7"})
    assert done.result()["generated_text"] == "12+34=46"


def test_watch_yields_the_growing_text(world: World) -> None:
    world.worker.go.clear()
    job = world.client.submit("12+34=")
    texts = []
    for seen in world.client.watch(job):
        texts.append(seen.text)
        if seen.text == "4":
            world.worker.go.set()
    assert texts[-1] == "46"
    assert "4" in texts


def test_cancel(world: World) -> None:
    world.worker.go.clear()
    job = world.client.submit("12+34=")
    eventually(lambda: world.client.job(job.id).text == "4")
    world.client.cancel(job)
    done = world.client.wait(job, timeout=10)
    assert (done.status, done.text) == ("cancelled", "4")
    with pytest.raises(JobFailedError, match="is cancelled"):
        done.result()
    assert world.client.cancel(job.id).status == "cancelled"


def test_one_key_creates_one_job(world: World) -> None:
    first = world.client.submit("1+1=", seed=1, idempotency_key="mine")
    again = world.client.submit("1+1=", seed=1, idempotency_key="mine")
    assert first.id == again.id
    with pytest.raises(InvalidRequestError, match="Idempotency-Key"):
        world.client.submit("2+2=", seed=1, idempotency_key="mine")


def test_errors_say_what_is_wrong(world: World) -> None:
    with pytest.raises(InvalidRequestError, match=r"max_tokens: .*2048"):
        world.client.generate("1", max_tokens=5000)
    with pytest.raises(InvalidRequestError, match=r"top_k: .*32"):
        world.client.submit("1", top_k=33)
    with pytest.raises(InvalidRequestError, match="'€'"):
        world.client.submit("1€")
    with pytest.raises(InvalidRequestError):
        world.client.generate("\ud800")
    with pytest.raises(InvalidRequestError):
        world.client.generate("1", temperature=float("nan"))
    with pytest.raises(NotFoundError, match="job_01JZ8K6T4V9QABCDEFGHJKMNPQ"):
        world.client.wait("job_01JZ8K6T4V9QABCDEFGHJKMNPQ")


def test_a_job_that_fails(world: World) -> None:
    world.worker.error = JobError(ErrorCode.OUT_OF_MEMORY, "The device has no memory left.", retryable=True)
    with pytest.raises(JobFailedError, match=r"no memory left\. \(out_of_memory\)") as caught:
        world.client.generate("12+34=")
    assert caught.value.job.text == "4"


def test_no_worker_is_an_error_after_the_retry_time(redis_url: str) -> None:
    with server(settings_for(redis_url)) as url, InferenceClient(url, retry_s=1.0) as client:
        with pytest.raises(UnavailableError, match="loaded"):
            client.generate("1")
        assert client.health()["model_loaded"] is False


def test_many_calls_wait_at_once(world: World) -> None:
    async def run() -> list[str]:
        async with AsyncInferenceClient(world.url) as client:
            results = await asyncio.gather(*(client.generate(f"{n}+1=") for n in range(50)))
            return [result["generated_text"] for result in results]

    assert asyncio.run(run()) == [f"{n}+1={n + 1}" for n in range(50)]


def test_the_text_of_a_stream_is_the_completion(world: World) -> None:
    world.worker.go.clear()
    job = world.client.submit("12+34=")
    events = []
    for event in world.client.stream(job):
        events.append(event)
        if isinstance(event, TokenEvent) and event.text == "4":
            world.worker.go.set()
    done = events[-1]
    assert isinstance(done, DoneEvent)
    assert done.job == world.client.job(job.id)
    assert "".join(event.text for event in events if isinstance(event, TokenEvent)) == done.job.text == "46"
    assert StatusEvent(status="running", attempt=1, worker="step_002920@test") in events
    assert list(world.client.stream(job, starting_after=done.id)) == []
    assert [event for event in world.client.stream(job, starting_after=1) if isinstance(event, TokenEvent)] == [
        TokenEvent(id="2-0", offset=1, count=1, text="6")
    ]


@pytest.fixture
def idle(redis_url: str) -> Iterator[InferenceClient]:
    """A client of an API whose only worker has stopped."""
    settings = settings_for(redis_url, bell_poll_s=0.2, reap_every_s=0.1)
    with fake_worker(settings):
        # Its card stays, so jobs are accepted.
        pass
    with server(settings) as url, InferenceClient(url) as client:
        yield client


def test_a_queued_job_has_its_position(idle: InferenceClient) -> None:
    first, second = (idle.submit("1+1=", wait_for_worker=True) for _ in range(2))
    assert second.position == 1
    places = []
    for event in idle.stream(second):
        if isinstance(event, QueueEvent):
            places.append(event.position)
            idle.cancel(first if event.position == 1 else second)
    assert places == [1, 0]


def test_text_piece_by_piece(world: World) -> None:
    assert "".join(world.client.generate_stream("123+456=")) == "579"
    world.worker.error = JobError(ErrorCode.OUT_OF_MEMORY, "The device has no memory left.", retryable=True)
    pieces = []
    with pytest.raises(JobFailedError, match=r"no memory left\. \(out_of_memory\)"):
        pieces.extend(world.client.generate_stream("12+34="))


def test_leaving_the_text_early_cancels_the_job(world: World) -> None:
    world.worker.go.clear()
    with closing(world.client.generate_stream("12+34=")) as pieces:
        assert next(pieces) == "4"
    [job] = world.client.jobs()
    assert world.client.wait(job, timeout=10).status == "cancelled"


def test_leaving_the_text_early_cancels_the_job_on_asyncio(world: World) -> None:
    world.worker.go.clear()

    async def run() -> None:
        async with AsyncInferenceClient(world.url) as client:
            async with aclosing(client.generate_stream("12+34=")) as pieces:
                assert await anext(pieces) == "4"
            [job] = await client.jobs()
            assert (await client.wait(job, timeout=10)).status == "cancelled"

    asyncio.run(run())


def test_many_streams_at_once(world: World) -> None:
    async def run() -> list[str]:
        async with AsyncInferenceClient(world.url) as client:

            async def text(prompt: str) -> str:
                return "".join([piece async for piece in client.generate_stream(prompt)])

            return await asyncio.gather(*(text(f"{n}+1=") for n in range(50)))

    assert asyncio.run(run()) == [str(n + 1) for n in range(50)]


def test_retry_and_delete(world: World) -> None:
    world.worker.error = JobError(ErrorCode.OUT_OF_MEMORY, "The device has no memory left.", retryable=True)
    failed = world.client.wait(world.client.submit("12+34=", seed=3), timeout=10)
    world.worker.error = None
    again = world.client.wait(world.client.retry(failed), timeout=10)
    assert (again.status, again.text, again.seed, again.retry_of) == ("succeeded", "46", 3, failed.id)
    with pytest.raises(ApiError) as caught:
        world.client.retry(again)
    assert (caught.value.status, caught.value.code) == (409, "not_retryable")
    for _ in range(2):
        world.client.delete(failed)
    with pytest.raises(NotFoundError):
        world.client.job(failed.id)


def test_a_job_that_is_deleted_while_it_is_streamed(world: World) -> None:
    world.worker.go.clear()
    job = world.client.submit("12+34=")
    events = world.client.stream(job)
    assert any(isinstance(event, TokenEvent) for event in events)
    world.client.delete(job)
    with pytest.raises(NotFoundError) as caught:
        list(events)
    assert caught.value.code == "gone"


def test_limits_are_sent_to_the_server(idle: InferenceClient) -> None:
    job = idle.submit("1+1=", wait_for_worker=True, queue_timeout_s=4, deadline_s=60)
    assert job.deadline_at is not None
    with pytest.raises(QueueFullError) as caught:
        idle.submit("1+1=", wait_for_worker=True, max_queue_position=0)
    assert caught.value.code == "max_queue_position"
    assert idle.wait(job, timeout=60).status == "expired"
