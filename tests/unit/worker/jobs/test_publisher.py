"""The publisher, with a Redis that the tests control: batches, retries, gaps, fences and the stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tasks.generation import FinishReason
from tasks.job import Status
from tasks.store.job_writes import AppendTokens, FinishJob, FlushReply
from tasks.store.worker_store import WorkerStore
from worker.engine_process.messages import Update
from worker.jobs.detokenizer import Detokenizer
from worker.jobs.publisher import Publisher, PublisherStoppedError
from worker.jobs.running_job import RunningJob

DEADLINE_S = 10.0
#: A flush interval that no test reaches, and one that is always over.
SELDOM_S = 3600.0
ALWAYS_S = 0.0


class Letters:
    """A decoder whose token ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def finish(self) -> str:
        return ""


def job(job_id: str = "job_1", *, attempt: int = 1) -> RunningJob:
    return RunningJob(
        job_id=job_id, attempt=attempt, detokenizer=Detokenizer(Letters()), token_ids=[], pieces=[], logged=0
    )


def decoded(running: RunningJob, text: str, finish: FinishReason | None = None) -> Update:
    return Update(running.sequence_id, tuple(map(ord, text)), finish)


class Store(WorkerStore):
    """Logs in memory."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.batches: list[list[AppendTokens | FinishJob]] = []
        self.released: list[tuple[str, int, bool]] = []
        #: For each release, whether it says that there was no memory left.
        self.out_of_memory: list[bool] = []
        self.logs: dict[str, list[str]] = {}
        self.ends: dict[str, FinishJob] = {}
        #: The next reply of `flush` for a job, which is then not written.
        self.replies: dict[str, FlushReply] = {}
        #: Jobs that a client cancelled, and jobs that a client streams.
        self.cancelled: set[str] = set()
        self.streamed: set[str] = set()
        #: False while Redis is away. `failed_calls` counts the calls in that time.
        self.available = True
        self.failed_calls = 0

    def flush(self, batch: Sequence[AppendTokens | FinishJob]) -> list[FlushReply]:
        with self._call():
            self.batches.append(list(batch))
            return [self._write(item) for item in batch]

    def release(self, job_id: str, attempt: int, *, count_loss: bool = False, out_of_memory: bool = False) -> bool:
        with self._call():
            self.released.append((job_id, attempt, count_loss))
            self.out_of_memory.append(out_of_memory)
            return True

    def wait_for(self, condition: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S)

    def text(self, job_id: str = "job_1") -> str:
        return "".join(self.logs.get(job_id, []))

    def _call(self) -> threading.Condition:
        with self._changed:
            self._changed.notify_all()
            if not self.available:
                self.failed_calls += 1
                raise RedisConnectionError("away")
        return self._changed

    def _write(self, item: AppendTokens | FinishJob) -> FlushReply:
        if item.job_id in self.replies:
            return self.replies.pop(item.job_id)
        log = self.logs.setdefault(item.job_id, [])
        tokens = item if isinstance(item, AppendTokens) else item.tokens
        assert tokens.before <= len(log), "the script would reply with a gap"
        log[tokens.before :] = tokens.pieces
        if isinstance(item, FinishJob):
            self.ends[item.job_id] = item
        return FlushReply(
            length=len(log),
            cancel_requested=item.job_id in self.cancelled,
            has_subscribers=item.job_id in self.streamed,
        )


class World:
    """A publisher, its store, and the ids of the sequences that it aborted."""

    def __init__(self) -> None:
        self.store = Store()
        self.aborted: list[str] = []
        self.publisher: Publisher | None = None

    def publish(self, flush_interval_s: float = ALWAYS_S) -> Publisher:
        self.publisher = Publisher(self.store, abort=self.aborted.append, flush_interval_s=flush_interval_s)
        self.publisher.start()
        return self.publisher

    def close(self) -> None:
        if self.publisher is not None:
            self.publisher.stop()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_first_tokens_are_sent_at_once_and_all_jobs_in_one_flush(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    first, second = job("job_1"), job("job_2")
    publisher.add(first)
    publisher.add(second)
    publisher.engine_decoded([decoded(first, "a"), decoded(second, "x")])
    world.store.wait_for(lambda: world.store.batches)
    assert [item.job_id for item in world.store.batches[0]] == ["job_1", "job_2"]


def test_between_first_and_last_token_nothing_is_sent_before_the_interval(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    running = job()
    publisher.add(running)
    for char in "abc":
        publisher.engine_decoded([decoded(running, char)])
    publisher.engine_decoded([decoded(running, "d", FinishReason.LENGTH)])
    assert running.over.wait(DEADLINE_S)
    # One flush for the first token, perhaps with others that had arrived; and one for the end with all other tokens.
    assert len(world.store.batches) <= 2
    assert world.store.text() == "abcd"


def test_tokens_of_a_job_that_no_client_streams_are_sent_less_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.jobs.publisher.time", SimpleNamespace(monotonic=lambda: now))
    world.store.streamed.add("streamed")
    publisher = world.publish(10.0)
    streamed, other = job("streamed"), job("other")
    publisher.add(streamed)
    publisher.add(other)
    sent: list[list[str]] = []
    for count in range(1, 22):
        publisher.engine_decoded([decoded(streamed, "a"), decoded(other, "x")])
        world.store.wait_for(lambda count=count: len(world.store.batches) == count)  # type: ignore[misc]
        sent.append([item.job_id for item in world.store.batches[-1]])
        now += 10.0
    assert sent == [["streamed", "other"], *[["streamed"]] * 9] * 2 + [["streamed", "other"]]
    assert world.store.text("other") == "x" * 21


def test_the_first_new_tokens_of_a_suspect_are_sent_at_once_and_clear_it(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    cleared = threading.Event()
    running = job(attempt=2)
    running.token_ids, running.pieces, running.logged = [97], ["a"], 1
    running.cleared_at, running.on_cleared = 3, cleared.set
    world.store.logs["job_1"] = ["a"]
    publisher.add(running)
    publisher.engine_decoded([decoded(running, "b")])
    publisher.engine_decoded([decoded(running, "c")])
    assert cleared.wait(DEADLINE_S)
    assert world.store.text() == "abc"


def test_every_token_is_sent_when_the_interval_is_over(world: World) -> None:
    publisher = world.publish(ALWAYS_S)
    running = job()
    publisher.add(running)
    for index, char in enumerate("abc"):
        publisher.engine_decoded([decoded(running, char)])
        world.store.wait_for(lambda sent=index: len(world.store.text()) == sent + 1)  # type: ignore[misc]
    assert len(world.store.batches) == 3
    assert publisher.tokens_decoded == 3


def test_the_end_is_written_once_and_the_task_body_may_return(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.add(running)
    publisher.engine_decoded([decoded(running, "579", FinishReason.STOP)])
    assert running.over.wait(DEADLINE_S)
    assert world.store.ends["job_1"].completion == "579"
    assert publisher.running() == []
    assert world.aborted == []


def test_tokens_are_sent_again_after_redis_was_away(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.add(running)
    world.store.available = False
    publisher.engine_decoded([decoded(running, "ab")])
    publisher.engine_decoded([decoded(running, "cd", FinishReason.LENGTH)])
    world.store.wait_for(lambda: world.store.failed_calls >= 2)
    assert not running.over.is_set()
    world.store.available = True
    assert running.over.wait(DEADLINE_S)
    assert world.store.text() == "abcd"
    assert world.store.ends["job_1"].completion == "abcd"


def test_a_log_that_lost_its_last_tokens_is_completed(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.add(running)
    publisher.engine_decoded([decoded(running, "abc")])
    world.store.wait_for(lambda: world.store.text() == "abc")
    del world.store.logs["job_1"][1:]
    world.store.replies["job_1"] = FlushReply(gap=True, length=1)
    publisher.engine_decoded([decoded(running, "d", FinishReason.LENGTH)])
    assert running.over.wait(DEADLINE_S)
    assert world.store.text() == "abcd"


def test_a_removed_job_is_over_before_its_sequence_is_aborted(world: World) -> None:
    """The job runner adds the request and then looks whether the job is over: in this order one of both aborts it."""
    running = job()
    over_at_abort: list[bool] = []
    publisher = Publisher(
        world.store, abort=lambda _: over_at_abort.append(running.over.is_set()), flush_interval_s=ALWAYS_S
    )
    publisher.start()
    publisher.add(running)
    publisher.lease_lost(running.sequence_id)
    assert running.over.wait(DEADLINE_S)
    publisher.stop()
    assert over_at_abort == [True]


def test_a_fenced_job_is_removed_and_its_sequence_aborted_and_other_jobs_continue(world: World) -> None:
    publisher = world.publish()
    lost, kept = job("job_1"), job("job_2")
    publisher.add(lost)
    publisher.add(kept)
    world.store.replies["job_1"] = FlushReply(fenced=True)
    publisher.engine_decoded([decoded(lost, "a"), decoded(kept, "x")])
    assert lost.over.wait(DEADLINE_S)
    publisher.engine_decoded([decoded(lost, "b", FinishReason.LENGTH), decoded(kept, "y", FinishReason.LENGTH)])
    assert kept.over.wait(DEADLINE_S)
    assert world.aborted == [lost.sequence_id]
    assert world.store.text("job_1") == ""
    assert world.store.text("job_2") == "xy"
    assert world.store.released == []


def test_a_cancel_in_the_reply_of_a_flush_aborts_the_sequence_and_its_end_is_written(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.add(running)
    world.store.cancelled.add("job_1")
    publisher.engine_decoded([decoded(running, "a")])
    world.store.wait_for(lambda: world.store.text() == "a")
    publisher.engine_decoded([decoded(running, "", FinishReason.CANCELLED)])
    assert running.over.wait(DEADLINE_S)
    assert set(world.aborted) == {running.sequence_id}
    assert world.store.ends["job_1"].status is Status.CANCELLED


def test_a_notification_of_a_cancel_aborts_only_the_sequence_of_that_job(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.add(running)
    publisher.engine_decoded([decoded(running, "a")])
    world.store.wait_for(lambda: world.store.text() == "a")
    publisher.cancel_requested("job_2")
    publisher.cancel_requested("job_1")
    assert world.aborted == [running.sequence_id]


def test_tokens_that_were_not_sent_when_a_cancel_was_requested_count_as_decoded_before_it(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    notified, other = job("job_1"), job("job_2")
    for running in (notified, other):
        publisher.add(running)
    publisher.engine_decoded([decoded(notified, "a"), decoded(other, "a")])
    publisher.engine_decoded([decoded(notified, "bc"), decoded(other, "bc")])
    publisher.cancel_requested("job_1")
    publisher.cancel("job_2")
    publisher.engine_decoded([decoded(notified, "d"), decoded(other, "d")])
    publisher.cancel_requested("job_1")
    publisher.engine_decoded(
        [decoded(notified, "", FinishReason.CANCELLED), decoded(other, "", FinishReason.CANCELLED)]
    )
    assert notified.over.wait(DEADLINE_S)
    assert other.over.wait(DEADLINE_S)
    assert world.store.ends["job_1"].tokens_at_cancel == 3
    assert world.store.ends["job_2"].tokens_at_cancel is None


def test_a_stop_text_that_the_engine_did_not_find_aborts_the_sequence(world: World) -> None:
    publisher = world.publish()
    running = job()
    running.detokenizer = Detokenizer(Letters(), stop=["END"])
    publisher.add(running)
    publisher.engine_decoded([decoded(running, "1END")])
    assert running.over.wait(DEADLINE_S)
    assert world.aborted == [running.sequence_id]
    assert world.store.ends["job_1"].completion == "1"


@pytest.mark.parametrize("out_of_memory", [False, True])
def test_a_release_says_whether_the_engine_had_no_memory(world: World, out_of_memory: bool) -> None:
    publisher = world.publish()
    running = job()
    publisher.add(running)
    publisher.engine_crashed(None, out_of_memory=out_of_memory)
    assert running.over.wait(DEADLINE_S)
    assert world.store.out_of_memory == [out_of_memory]


def test_jobs_of_a_crashed_engine_are_released_with_their_tokens_and_a_loss_each(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    first, second = job("job_1"), job("job_2", attempt=4)
    publisher.add(first)
    publisher.add(second)
    publisher.engine_decoded([decoded(first, "ab"), decoded(second, "xy")])
    publisher.engine_crashed(None, out_of_memory=False)
    assert first.over.wait(DEADLINE_S)
    assert second.over.wait(DEADLINE_S)
    assert world.store.released == [("job_1", 1, True), ("job_2", 4, True)]
    assert (world.store.text("job_1"), world.store.text("job_2")) == ("ab", "xy")


def test_after_a_crash_the_job_that_ran_alone_has_the_only_loss(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    first, second = job("job_1", attempt=2), job("job_2", attempt=2)
    publisher.add(first)
    publisher.add(second)
    publisher.engine_decoded([decoded(first, "ab"), decoded(second, "xy")])
    publisher.engine_crashed(second.sequence_id, out_of_memory=False)
    assert first.over.wait(DEADLINE_S)
    assert second.over.wait(DEADLINE_S)
    assert world.store.released == [("job_1", 2, False), ("job_2", 2, True)]
    assert (world.store.text("job_1"), world.store.text("job_2")) == ("ab", "xy")


def test_after_a_crash_no_loss_is_counted_if_the_suspect_is_over(world: World) -> None:
    publisher = world.publish()
    over, running = job("job_1"), job("job_2")
    publisher.add(over)
    publisher.add(running)
    publisher.engine_decoded([decoded(over, "a", FinishReason.LENGTH)])
    assert over.over.wait(DEADLINE_S)
    publisher.engine_crashed(over.sequence_id, out_of_memory=False)
    assert running.over.wait(DEADLINE_S)
    assert world.store.released == [("job_2", 1, False)]


def test_a_release_is_repeated_while_redis_is_away(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.add(running)
    world.store.available = False
    publisher.engine_crashed(None, out_of_memory=False)
    world.store.wait_for(lambda: world.store.failed_calls >= 2)
    assert not running.over.is_set()
    world.store.available = True
    assert running.over.wait(DEADLINE_S)
    assert world.store.released == [("job_1", 1, True)]


def test_one_job_can_be_released(world: World) -> None:
    publisher = world.publish()
    first, second = job("job_1"), job("job_2")
    publisher.add(first)
    publisher.add(second)
    publisher.release(first.sequence_id)
    assert first.over.wait(DEADLINE_S)
    assert world.store.released == [("job_1", 1, False)]
    assert [running.job_id for running in publisher.running()] == ["job_2"]


def test_late_updates_of_an_earlier_attempt_do_not_reach_the_next_one(world: World) -> None:
    publisher = world.publish()
    old, new = job(attempt=1), job(attempt=2)
    publisher.add(old)
    publisher.lease_lost(old.sequence_id)
    publisher.add(new)
    publisher.engine_decoded([decoded(old, "z"), decoded(new, "a")])
    publisher.engine_decoded([decoded(old, "", FinishReason.CANCELLED), decoded(new, "b", FinishReason.LENGTH)])
    assert new.over.wait(DEADLINE_S)
    assert world.store.text() == "ab"
    assert world.store.ends["job_1"].status is Status.SUCCEEDED
    assert world.store.ends["job_1"].tokens.attempt == 2


def test_a_later_attempt_of_a_job_replaces_the_earlier_one(world: World) -> None:
    publisher = world.publish()
    old, new = job(attempt=1), job(attempt=2)
    publisher.add(old)
    publisher.add(new)
    publisher.engine_decoded([decoded(new, "a")])
    world.store.wait_for(lambda: world.store.text() == "a")
    assert old.over.is_set()
    assert world.aborted == [old.sequence_id]
    assert [running.attempt for running in publisher.running()] == [2]


def test_stop_flushes_and_releases_every_job_and_no_job_is_added_after_it(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    running, done = job("job_1"), job("job_2")
    publisher.add(running)
    publisher.add(done)
    publisher.engine_decoded([decoded(running, "ab"), decoded(done, "xy", FinishReason.LENGTH)])
    publisher.stop()
    assert running.over.is_set()
    assert done.over.is_set()
    assert world.store.text("job_1") == "ab"
    assert world.store.ends["job_2"].completion == "xy"
    assert world.store.released == [("job_1", 1, False)]
    with pytest.raises(PublisherStoppedError):
        publisher.add(job("job_3"))


def test_stop_without_redis_makes_one_call_and_lets_the_task_bodies_return(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.add(running)
    publisher.engine_decoded([decoded(running, "ab")])
    world.store.wait_for(lambda: world.store.text() == "ab")
    world.store.available = False
    publisher.engine_decoded([decoded(running, "c")])
    world.store.wait_for(lambda: world.store.failed_calls >= 1)
    publisher.stop()
    assert running.over.is_set()
    assert world.store.released == []


def test_a_release_that_always_fails_stops_no_other_release() -> None:
    class Poisoned(Store):
        def release(self, job_id: str, attempt: int, *, count_loss: bool = False, out_of_memory: bool = False) -> bool:
            if job_id == "job_1":
                raise ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
            return super().release(job_id, attempt, count_loss=count_loss)

    store = Poisoned()
    publisher = Publisher(store, abort=lambda _: None, flush_interval_s=SELDOM_S)
    publisher.start()
    first, second = job("job_1"), job("job_2")
    publisher.add(first)
    publisher.add(second)
    publisher.engine_crashed(None, out_of_memory=False)
    assert first.over.wait(DEADLINE_S)
    assert second.over.wait(DEADLINE_S)
    publisher.stop()
    assert store.released == [("job_2", 1, True)]
