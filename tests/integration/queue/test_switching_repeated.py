"""Calls of a switching worker whose replies were lost, so that they are sent again."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from tasks.store import keys, scripts
from tasks.store.switching_store import Load, Retire, SwitchingStore
from tasks.switching_info import ChildState
from tests.helpers.script_clock import ScriptClock
from tests.helpers.switching_worker import SWITCHING, child, named, offers, with_children
from tests.integration.conftest import CARD, QueueWorld
from tests.integration.queue.switching_jobs import register

pytestmark = pytest.mark.anyio


def content(client: redis.Redis) -> dict[str, Any]:
    """Everything in Redis but times to live and what Celery keeps."""
    found: dict[str, Any] = {}
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"stream": client.xrange,
    }
    for key in client.scan_iter(f"{keys.PREFIX}*"):
        found[key.decode()] = read[client.type(key)](key)  # type: ignore[index, operator]
    return found


async def life(queue: QueueWorld, clock: ScriptClock) -> list[dict[str, Any]]:
    """What is in Redis at each step of offers, jobs, a switch and a stop."""
    store = SwitchingStore(queue.redis, queue.settings)
    steps = []

    def step() -> None:
        steps.append(content(queue.redis))
        clock.advance(1)

    store.offer(SWITCHING, offers(CARD, *"abcd"))
    step()
    for name in "abc":
        await queue.submit(id=f"job_{name}", checkpoint=name, digest=named(CARD, name).digest)
    store.offer(SWITCHING, offers(CARD, *"abc"))
    step()
    assert store.next_switch(SWITCHING) == Load("a")
    step()
    store.offer(with_children(child("a", ChildState.LOADING)), offers(CARD, *"abc"))
    worker = register(queue, "a")
    queue.claim("job_a", worker)
    step()
    queue.finish("job_a")
    assert store.next_switch(with_children(child("a"))) == Retire("a", "b", hand_on=False)
    step()
    queue.workers.deregister(worker)
    store.offer(SWITCHING, offers(CARD, *"ab"))
    assert store.next_switch(SWITCHING) == Load("b")
    queue.workers.reap()
    step()
    store.retract(SWITCHING)
    step()
    return steps


async def test_calls_that_are_sent_again_have_the_effect_of_one(
    lasting: QueueWorld, clock: ScriptClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = await life(lasting, clock)
    real = scripts.Script.call

    def twice(script: scripts.Script, client: Any, *arguments: scripts.Argument) -> Any:
        # The reaper goes on with each call.
        if script.name != "reap":
            real(script, client, *arguments)
        return real(script, client, *arguments)

    monkeypatch.setattr(scripts.Script, "call", twice)
    lasting.redis.flushall()
    clock.restart()
    again = await life(lasting, clock)
    for single, repeated in zip(once, again, strict=True):
        for state in (single, repeated):
            # How far the reaper has come depends on where Redis has the keys.
            state.pop(keys.REAPED, None)
            for name in "abc":
                # Drawn at random for each claim.
                state.get(keys.job(f"job_{name}"), {}).pop(b"claim", None)
                state.get(keys.job(f"job_{name}"), {}).pop(b"message", None)
        assert repeated == single
