"""Customers: each keeps one job in the system, by HTTP, from whatever API process answers."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.chaos.follow import Followed, follow
from bench.chaos.queue_view import QueueView
from bench.chaos.system import CHECKPOINTS, Api
from tasks.job import Job

#: Jobs that wait or run at any time.
CUSTOMERS = 30
#: Tokens of a job, at least and at most.
FEWEST_TOKENS = 20
MOST_TOKENS = 600
#: How long an answer may take until the request is repeated, in seconds.
ANSWER_S = 5.0
#: Pause before a request is repeated, in seconds.
REPEAT_S = 0.1
#: How often the records of the open jobs are looked at, in seconds.
WATCH_S = 0.05
#: Share of the jobs that are cancelled, and of those that somebody reads along.
CANCELLED = 0.07
FOLLOWED = 0.3
#: Longest wait before a job is cancelled that is to be cancelled, in seconds.
CANCEL_WITHIN_S = 1.5


@dataclass
class Ordered:
    """A job that an API process accepted."""

    id: str
    cancelled: bool
    #: The most tokens that were seen in its record.
    tokens: int = 0
    #: Its record when it was first seen to be over.
    final: Job | None = None
    #: Its record was there, and is not any more.
    gone: bool = False
    #: Its record once told fewer tokens than before.
    shrank: bool = False
    #: What a customer saw who read along; None where nobody did.
    followed: Followed | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Load:
    """All customers, and what they were promised."""

    def __init__(self, apis: Sequence[Api], view: QueueView, seed: int) -> None:
        self._apis = apis
        self._view = view
        self._seed = seed
        self._stopping = False
        #: Every accepted job.
        self.orders: list[Ordered] = []
        #: Answers that no customer should get: status and what it said.
        self.unexpected: Counter[str] = Counter()

    @property
    def open(self) -> list[Ordered]:
        """Jobs that were not seen to be over yet."""
        return [order for order in self.orders if not order.over.is_set()]

    async def run(self) -> None:
        """Order again and again until `stop`; returns when every job is over."""
        async with httpx.AsyncClient(timeout=ANSWER_S) as client:
            watcher = asyncio.create_task(self._watch(), name="watcher")
            try:
                async with asyncio.TaskGroup() as customers:
                    for number in range(CUSTOMERS):
                        customers.create_task(self._customer(client, random.Random(f"{self._seed}/{number}")))
            finally:
                watcher.cancel()

    def stop(self) -> None:
        """Order no more."""
        self._stopping = True

    async def _customer(self, client: httpx.AsyncClient, dice: random.Random) -> None:
        while not self._stopping:
            body = request(dice)
            cancel_after_s = dice.uniform(0, CANCEL_WITHIN_S) if dice.random() < CANCELLED else None
            key = {"Idempotency-Key": f'"{uuid.UUID(int=dice.getrandbits(128))}"'}
            answer = await self._insist(client, dice, "/v1/jobs", body, key)
            if answer is None:
                await asyncio.sleep(REPEAT_S)
                continue
            order = Ordered(answer["id"], cancel_after_s is not None)
            self.orders.append(order)
            async with asyncio.TaskGroup() as both:
                if dice.random() < FOLLOWED:
                    order.followed = Followed()
                    # With dice of its own: how often it is cast is not for the seed to say.
                    own = random.Random(dice.random())
                    both.create_task(follow(client, self._apis, own, order.followed, order.id))
                if cancel_after_s is not None:
                    await asyncio.sleep(cancel_after_s)
                    await self._insist(client, dice, f"/v1/jobs/{order.id}/cancel", None, {})
                await order.over.wait()

    async def _insist(
        self, client: httpx.AsyncClient, dice: random.Random, path: str, body: Any, headers: dict[str, str]
    ) -> dict[str, Any] | None:
        """The good answer to a POST, which is repeated until there is one, at any API process; None: refused."""
        while True:
            api = dice.choice(self._apis)
            try:
                answer = await client.post(f"{api.url}{path}", json=body, headers=headers)
            except httpx.TransportError:
                # Killed, not there yet again, or killed before it could answer: the job may have been accepted.
                pass
            else:
                if answer.is_success:
                    good: dict[str, Any] = answer.json()
                    return good
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    self.unexpected[f"{answer.status_code} {answer.text}"] += 1
                if answer.is_client_error:
                    return None
            await asyncio.sleep(REPEAT_S)

    async def _watch(self) -> None:
        while True:
            orders = {order.id: order for order in self.open}
            progress = await self._view.progress(list(orders))
            for job_id, order in orders.items():
                seen = progress.get(job_id)
                if seen is None:
                    order.gone = True
                    order.over.set()
                    continue
                order.shrank = order.shrank or seen.tokens < order.tokens
                order.tokens = max(order.tokens, seen.tokens)
                if seen.status.terminal:
                    order.final = await self._view.job(job_id)
                    order.over.set()
            await asyncio.sleep(WATCH_S)


def request(dice: random.Random) -> dict[str, Any]:
    """A job for one of the checkpoints; most go on for long."""
    digits = dice.randint(1, 12)
    prompt = f"{dice.randrange(10**digits)}{dice.choice('+-')}{dice.randrange(10**digits)}="
    return {
        "prompt": prompt,
        "model": dice.choice(CHECKPOINTS),
        "max_tokens": dice.randint(FEWEST_TOKENS, MOST_TOKENS),
        "temperature": dice.choice([0.0, 0.8]),
        "top_k": dice.choice([None, None, 5]),
        "seed": dice.getrandbits(53),
        "ignore_eos": dice.random() < 0.9,
        "priority": dice.randint(0, 9),
        "wait_for_worker": True,
    }
