"""Workers are restarted one after the other while clients send requests: no request fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.integration.cluster import Cluster, Engine
from tests.integration.stack import until

CLIENTS = 6
#: How long a client waits for its job, in seconds.
WAIT_S = 120
BODY = {"prompt": "123+456=", "max_tokens": 1200, "ignore_eos": True}


@contextmanager
def requests(url: str) -> Iterator[Callable[[], list[httpx.Response]]]:
    """Clients that each send a request after the other. The function returns the answers until now."""
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def send(number: int) -> None:
        with httpx.Client(base_url=url, timeout=WAIT_S + 10) as client:
            while not stop.is_set():
                headers = {"Prefer": f"wait={WAIT_S}"}
                body = {**BODY, "seed": number, "temperature": 0.8 * (number % 2)}
                answers.append(client.post("/v1/jobs", json=body, headers=headers))

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(send, number) for number in range(CLIENTS)]
        try:
            yield lambda: list(answers)
        finally:
            stop.set()
        for client in clients:
            client.result()


@pytest.mark.parametrize("restarts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_no_request_fails_and_no_loss_is_counted(cluster: Cluster, restarts: int) -> None:
    workers = cluster.workers(2)
    _, url = cluster.stack.api()
    with requests(url) as answers:
        for worker in workers[:restarts]:
            # The worker must have jobs that it could lose: they do not end, however fast the machine is.
            Engine(worker).stop()
            running = cluster.until_busy(worker)
            assert worker.terminate() == 0
            served = len(answers())
            cluster.worker()
            # The other worker serves jobs until the new one is ready.
            until(lambda served=served: len(answers()) > served, "further answers")  # type: ignore[misc]
            assert {cluster.finished(job_id).losses for job_id in running} == {0}
    jobs = [answer.json() for answer in answers()]
    assert {answer.status_code for answer in answers()} == {200}
    assert {(job["status"], job["losses"], job["usage"]["completion_tokens"]) for job in jobs} == {
        ("succeeded", 0, BODY["max_tokens"])
    }
    # Compare the texts of all jobs that were released, and of some others.
    found = [cluster.job(job["id"]) for job in jobs]
    released = [job for job in found if job.attempt > 1]
    assert released
    cluster.assert_undisturbed(*released, *found[:CLIENTS])
    cluster.until_quiet()
