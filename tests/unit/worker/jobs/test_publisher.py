"""The publisher before a Redis that does what the test wants: batches, retries, gaps, fences, and its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tasks.generation import FinishReason
from tasks.job import Status
from tasks.store.worker_store import AppendTokens, FinishJob, FlushReply, WorkerStore
from worker.engine.update import Update
from worker.jobs.detokenizer import Detokenizer
from worker.jobs.publisher import Publisher, PublisherStoppedError
from worker.jobs.running_job import RunningJob

DEADLINE_S = 10.0
#: So long that no test sees a flush for its sake; and none at all.
SELDOM_S = 3600.0
ALWAYS_S = 0.0


class Letters:
    """A decoder whose token ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)


def job(job_id: str = "job_1", *, attempt: int = 1) -> RunningJob:
    return RunningJob(
        job_id=job_id, attempt=attempt, assembler=Detokenizer(Letters()), token_ids=[], pieces=[], logged=0
    )


def said(running: RunningJob, text: str, finish: FinishReason | None = None) -> Update:
    return Update(running.sequence_id, tuple(map(ord, text)), finish)


class Store(WorkerStore):
    """Logs in memory."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.batches: list[list[AppendTokens | FinishJob]] = []
        self.released: list[tuple[str, int, bool]] = []
        self.logs: dict[str, list[str]] = {}
        self.ends: dict[str, FinishJob] = {}
        #: What a flush answers for a job, once, instead of writing.
        self.answers: dict[str, FlushReply] = {}
        #: Jobs that a client cancelled, and those that one follows.
        self.cancelled: set[str] = set()
        self.followed: set[str] = set()
        #: Cleared: Redis is away. `tries` counts the calls that found it so.
        self.there = True
        self.tries = 0

    def flush(self, batch: Sequence[AppendTokens | FinishJob]) -> list[FlushReply]:
        with self._answering():
            self.batches.append(list(batch))
            return [self._write(item) for item in batch]

    def release(self, job_id: str, attempt: int, *, count_loss: bool = False) -> bool:
        with self._answering():
            self.released.append((job_id, attempt, count_loss))
            return True

    def wait_for(self, condition: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S)

    def text(self, job_id: str = "job_1") -> str:
        return "".join(self.logs.get(job_id, []))

    def _answering(self) -> threading.Condition:
        with self._changed:
            self._changed.notify_all()
            if not self.there:
                self.tries += 1
                raise RedisConnectionError("away")
        return self._changed

    def _write(self, item: AppendTokens | FinishJob) -> FlushReply:
        if item.job_id in self.answers:
            return self.answers.pop(item.job_id)
        log = self.logs.setdefault(item.job_id, [])
        assert item.before <= len(log), "the script answers a gap"
        log[item.before :] = item.pieces
        if isinstance(item, FinishJob):
            self.ends[item.job_id] = item
        return FlushReply(
            length=len(log),
            cancel_requested=item.job_id in self.cancelled,
            has_subscribers=item.job_id in self.followed,
        )


class World:
    """A publisher, its store, and the sequences that it told the engine to stop."""

    def __init__(self) -> None:
        self.store = Store()
        self.aborted: list[str] = []
        self.publisher: Publisher | None = None

    def publish(self, flush_interval_s: float = ALWAYS_S) -> Publisher:
        self.publisher = Publisher(self.store, flush_interval_s=flush_interval_s, abort=self.aborted.append)
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


def test_first_tokens_go_at_once_and_all_jobs_in_one_flush(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    first, second = job("job_1"), job("job_2")
    publisher.adopt(first)
    publisher.adopt(second)
    publisher.take([said(first, "a"), said(second, "x")])
    world.store.wait_for(lambda: world.store.batches)
    assert [item.job_id for item in world.store.batches[0]] == ["job_1", "job_2"]


def test_between_first_and_last_token_nothing_is_sent_before_the_interval(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    running = job()
    publisher.adopt(running)
    for char in "abc":
        publisher.take([said(running, char)])
    publisher.take([said(running, "d", FinishReason.LENGTH)])
    assert running.over.wait(DEADLINE_S)
    # The first token, perhaps with others that were in by then; and the end with all the rest.
    assert len(world.store.batches) <= 2
    assert world.store.text() == "abcd"


def test_what_nobody_follows_is_sent_less_often(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.jobs.publisher.time", SimpleNamespace(monotonic=lambda: now))
    world.store.followed.add("read")
    publisher = world.publish(10.0)
    read, unread = job("read"), job("unread")
    publisher.adopt(read)
    publisher.adopt(unread)
    sent: list[list[str]] = []
    for count in range(1, 22):
        publisher.take([said(read, "a"), said(unread, "x")])
        world.store.wait_for(lambda count=count: len(world.store.batches) == count)  # type: ignore[misc]
        sent.append([item.job_id for item in world.store.batches[-1]])
        now += 10.0
    assert sent == [["read", "unread"], *[["read"]] * 9] * 2 + [["read", "unread"]]
    assert world.store.text("unread") == "x" * 21


def test_a_suspects_first_new_tokens_go_at_once_and_clear_it(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    cleared = threading.Event()
    running = job(attempt=2)
    running.token_ids, running.pieces, running.logged = [97], ["a"], 1
    running.cleared_at, running.on_cleared = 3, cleared.set
    world.store.logs["job_1"] = ["a"]
    publisher.adopt(running)
    publisher.take([said(running, "b")])
    publisher.take([said(running, "c")])
    assert cleared.wait(DEADLINE_S)
    assert world.store.text() == "abc"


def test_with_an_interval_that_is_over_every_token_is_sent(world: World) -> None:
    publisher = world.publish(ALWAYS_S)
    running = job()
    publisher.adopt(running)
    for index, char in enumerate("abc"):
        publisher.take([said(running, char)])
        world.store.wait_for(lambda sent=index: len(world.store.text()) == sent + 1)  # type: ignore[misc]
    assert len(world.store.batches) == 3
    assert publisher.tokens_decoded == 3


def test_the_end_is_written_once_and_the_body_may_return(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.adopt(running)
    publisher.take([said(running, "579", FinishReason.STOP)])
    assert running.over.wait(DEADLINE_S)
    assert world.store.ends["job_1"].completion == "579"
    assert publisher.running() == []
    assert world.aborted == []


def test_while_redis_is_away_nothing_is_lost_and_it_is_sent_again(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.adopt(running)
    world.store.there = False
    publisher.take([said(running, "ab")])
    publisher.take([said(running, "cd", FinishReason.LENGTH)])
    world.store.wait_for(lambda: world.store.tries >= 2)
    assert not running.over.is_set()
    world.store.there = True
    assert running.over.wait(DEADLINE_S)
    assert world.store.text() == "abcd"
    assert world.store.ends["job_1"].completion == "abcd"


def test_a_log_that_lost_its_end_is_filled_up_from_there(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.adopt(running)
    publisher.take([said(running, "abc")])
    world.store.wait_for(lambda: world.store.text() == "abc")
    del world.store.logs["job_1"][1:]
    world.store.answers["job_1"] = FlushReply(gap=True, length=1)
    publisher.take([said(running, "d", FinishReason.LENGTH)])
    assert running.over.wait(DEADLINE_S)
    assert world.store.text() == "abcd"


def test_a_fenced_job_is_dropped_and_its_sequence_stopped_and_the_others_go_on(world: World) -> None:
    publisher = world.publish()
    lost, kept = job("job_1"), job("job_2")
    publisher.adopt(lost)
    publisher.adopt(kept)
    world.store.answers["job_1"] = FlushReply(fenced=True)
    publisher.take([said(lost, "a"), said(kept, "x")])
    assert lost.over.wait(DEADLINE_S)
    publisher.take([said(lost, "b", FinishReason.LENGTH), said(kept, "y", FinishReason.LENGTH)])
    assert kept.over.wait(DEADLINE_S)
    assert world.aborted == [lost.sequence_id]
    assert world.store.text("job_1") == ""
    assert world.store.text("job_2") == "xy"
    assert world.store.released == []


def test_a_cancel_that_the_reply_tells_stops_the_sequence_and_its_end_is_written(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.adopt(running)
    world.store.cancelled.add("job_1")
    publisher.take([said(running, "a")])
    world.store.wait_for(lambda: world.store.text() == "a")
    publisher.take([said(running, "", FinishReason.CANCELLED)])
    assert running.over.wait(DEADLINE_S)
    assert set(world.aborted) == {running.sequence_id}
    assert world.store.ends["job_1"].status is Status.CANCELLED


def test_a_cancel_by_bell_stops_the_sequence_and_one_of_another_job_nothing(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.adopt(running)
    publisher.take([said(running, "a")])
    world.store.wait_for(lambda: world.store.text() == "a")
    publisher.hear_cancel("job_2")
    publisher.hear_cancel("job_1")
    assert world.aborted == [running.sequence_id]


def test_tokens_that_were_not_sent_when_the_bell_of_a_cancel_rang_were_decoded_before_it(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    heard, unheard = job("job_1"), job("job_2")
    for running in (heard, unheard):
        publisher.adopt(running)
    publisher.take([said(heard, "a"), said(unheard, "a")])
    publisher.take([said(heard, "bc"), said(unheard, "bc")])
    publisher.hear_cancel("job_1")
    publisher.cancel("job_2")
    publisher.take([said(heard, "d"), said(unheard, "d")])
    publisher.hear_cancel("job_1")
    publisher.take([said(heard, "", FinishReason.CANCELLED), said(unheard, "", FinishReason.CANCELLED)])
    assert heard.over.wait(DEADLINE_S)
    assert unheard.over.wait(DEADLINE_S)
    assert world.store.ends["job_1"].tokens_at_cancel == 3
    assert world.store.ends["job_2"].tokens_at_cancel is None


def test_a_text_that_ends_before_the_engine_knows_stops_the_sequence(world: World) -> None:
    publisher = world.publish()
    running = job()
    running.assembler = Detokenizer(Letters(), stop=["END"])
    publisher.adopt(running)
    publisher.take([said(running, "1END")])
    assert running.over.wait(DEADLINE_S)
    assert world.aborted == [running.sequence_id]
    assert world.store.ends["job_1"].completion == "1"


def test_jobs_of_a_dead_engine_are_handed_back_with_their_tokens_and_a_loss(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    first, second = job("job_1"), job("job_2", attempt=4)
    publisher.adopt(first)
    publisher.adopt(second)
    publisher.take([said(first, "ab"), said(second, "xy")])
    publisher.engine_died(None)
    assert first.over.wait(DEADLINE_S)
    assert second.over.wait(DEADLINE_S)
    assert world.store.released == [("job_1", 1, True), ("job_2", 4, True)]
    assert (world.store.text("job_1"), world.store.text("job_2")) == ("ab", "xy")


def test_of_the_jobs_of_a_dead_engine_the_one_that_ran_alone_has_the_loss(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    first, second = job("job_1", attempt=2), job("job_2", attempt=2)
    publisher.adopt(first)
    publisher.adopt(second)
    publisher.take([said(first, "ab"), said(second, "xy")])
    publisher.engine_died(second.sequence_id)
    assert first.over.wait(DEADLINE_S)
    assert second.over.wait(DEADLINE_S)
    assert world.store.released == [("job_1", 2, False), ("job_2", 2, True)]
    assert (world.store.text("job_1"), world.store.text("job_2")) == ("ab", "xy")


def test_a_death_put_down_to_a_job_that_is_over_costs_the_others_nothing(world: World) -> None:
    publisher = world.publish()
    over, running = job("job_1"), job("job_2")
    publisher.adopt(over)
    publisher.adopt(running)
    publisher.take([said(over, "a", FinishReason.LENGTH)])
    assert over.over.wait(DEADLINE_S)
    publisher.engine_died(over.sequence_id)
    assert running.over.wait(DEADLINE_S)
    assert world.store.released == [("job_2", 1, False)]


def test_handing_back_waits_for_redis(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.adopt(running)
    world.store.there = False
    publisher.engine_died(None)
    world.store.wait_for(lambda: world.store.tries >= 2)
    assert not running.over.is_set()
    world.store.there = True
    assert running.over.wait(DEADLINE_S)
    assert world.store.released == [("job_1", 1, True)]


def test_one_job_may_be_handed_back_alone(world: World) -> None:
    publisher = world.publish()
    first, second = job("job_1"), job("job_2")
    publisher.adopt(first)
    publisher.adopt(second)
    publisher.hand_back(first.sequence_id)
    assert first.over.wait(DEADLINE_S)
    assert world.store.released == [("job_1", 1, False)]
    assert [running.job_id for running in publisher.running()] == ["job_2"]


def test_what_an_earlier_attempt_still_reports_does_not_reach_the_next(world: World) -> None:
    publisher = world.publish()
    old, new = job(attempt=1), job(attempt=2)
    publisher.adopt(old)
    publisher.drop(old.sequence_id)
    publisher.adopt(new)
    publisher.take([said(old, "z"), said(new, "a")])
    publisher.take([said(old, "", FinishReason.CANCELLED), said(new, "b", FinishReason.LENGTH)])
    assert new.over.wait(DEADLINE_S)
    assert world.store.text() == "ab"
    assert world.store.ends["job_1"].status is Status.SUCCEEDED
    assert world.store.ends["job_1"].attempt == 2


def test_a_later_attempt_of_the_same_job_takes_the_place_of_the_first(world: World) -> None:
    publisher = world.publish()
    old, new = job(attempt=1), job(attempt=2)
    publisher.adopt(old)
    publisher.adopt(new)
    assert old.over.wait(DEADLINE_S)
    assert world.aborted == [old.sequence_id]
    assert [running.attempt for running in publisher.running()] == [2]


def test_stopping_flushes_hands_everything_back_and_takes_nothing_more(world: World) -> None:
    publisher = world.publish(SELDOM_S)
    running, done = job("job_1"), job("job_2")
    publisher.adopt(running)
    publisher.adopt(done)
    publisher.take([said(running, "ab"), said(done, "xy", FinishReason.LENGTH)])
    publisher.stop()
    assert running.over.is_set()
    assert done.over.is_set()
    assert world.store.text("job_1") == "ab"
    assert world.store.ends["job_2"].completion == "xy"
    assert world.store.released == [("job_1", 1, False)]
    with pytest.raises(PublisherStoppedError):
        publisher.adopt(job("job_3"))


def test_stopping_without_redis_tries_once_and_lets_the_bodies_go(world: World) -> None:
    publisher = world.publish()
    running = job()
    publisher.adopt(running)
    publisher.take([said(running, "ab")])
    world.store.wait_for(lambda: world.store.text() == "ab")
    world.store.there = False
    publisher.take([said(running, "c")])
    world.store.wait_for(lambda: world.store.tries >= 1)
    publisher.stop()
    assert running.over.is_set()
    assert world.store.released == []
