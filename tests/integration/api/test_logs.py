"""A record that cannot be read puts nothing of it into the log of the API."""

from __future__ import annotations

import json

import httpx
import pytest
import redis

from tasks.store import keys
from tests.helpers.api_client import settings_for
from tests.helpers.event_streams import DEADLINE_S
from tests.helpers.fake_worker import FakeWorker
from tests.integration.stack import Stack, until

SECRET = "a-secret-prompt"
#: A field of a record, and a value that is not what it should be.
BROKEN = {
    "cancel_requested_at": SECRET,
    "priority": SECRET,
    "input": json.dumps({"prompt": [SECRET], "max_tokens": 3}),
    "metadata": "{" + SECRET,
    "error": json.dumps({"code": SECRET, "message": "", "retryable": False}),
    "finish_reason": SECRET,
    "deadline_at": SECRET,
}


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_bad_record_leaves_no_trace_of_its_content(stack: Stack, redis_url: str, log_format: str) -> None:
    settings = settings_for(redis_url)
    process, url = stack.api(log_format=log_format, bell_poll_s="0.05")
    worker = FakeWorker(settings)
    # It takes no job.
    worker.store.register(worker.info, worker.card)
    with (
        httpx.Client(base_url=url, timeout=DEADLINE_S) as client,
        redis.Redis.from_url(redis_url) as database,
    ):
        for field, value in BROKEN.items():
            job = client.post("/v1/jobs", json={"prompt": "1+1=", "metadata": {"a": "1"}}).json()
            with client.stream("GET", job["urls"]["stream"]) as stream:
                lines = stream.iter_lines()
                # The stream has begun, so the error comes too late for a status.
                assert any(line.startswith("event: ") for line in lines)
                database.hset(keys.job(job["id"]), mapping={field: value, "status": "failed", "version": 99})
                try:
                    rest = list(lines)
                except httpx.RemoteProtocolError:
                    rest = []
                assert SECRET not in "".join(line for line in rest if not line.startswith("data: "))
            client.get(job["urls"]["self"])
            database.delete(keys.job(job["id"]))
        # The reaper of the process logs it.
        until(lambda: "record_damaged" in process.output, "the damage in the log")
    assert SECRET not in process.output
