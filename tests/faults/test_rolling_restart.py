"""Workers are restarted one after the other under load: nobody who asks over HTTP notices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from tests.integration.cluster import Cluster
from tests.integration.stack import until

CUSTOMERS = 6
#: How long one of them waits for its job, in seconds.
PATIENCE_S = 120
#: Texts that take longer than a worker waits for its last message before it hands back what runs.
BODY = {"prompt": "123+456=", "max_tokens": 1200, "ignore_eos": True}


@contextmanager
def load(url: str) -> Iterator[Callable[[], list[httpx.Response]]]:
    """Customers that ask again as soon as they have their answer. The function has the answers so far."""
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_S + 10) as client:
            while not stop.is_set():
                headers = {"Prefer": f"wait={PATIENCE_S}"}
                body = {**BODY, "seed": number, "temperature": 0.8 * (number % 2)}
                answers.append(client.post("/v1/jobs", json=body, headers=headers))

    with ThreadPoolExecutor(CUSTOMERS) as pool:
        asking = [pool.submit(ask, number) for number in range(CUSTOMERS)]
        try:
            yield lambda: list(answers)
        finally:
            stop.set()
        for customer in asking:
            customer.result()


def test_no_request_fails_and_no_loss_is_counted(cluster: Cluster) -> None:
    workers = cluster.workers(2)
    _, url = cluster.stack.api()
    with load(url) as answers:
        for worker in workers:
            # Never without a job that it could lose.
            running = cluster.until_busy(worker)
            assert worker.terminate() == 0
            served = len(answers())
            cluster.worker()
            # Meanwhile, or now, others serve on.
            until(lambda served=served: len(answers()) > served, "further answers")  # type: ignore[misc]
            assert {cluster.finished(job_id).losses for job_id in running} == {0}
    jobs = [answer.json() for answer in answers()]
    assert {answer.status_code for answer in answers()} == {200}
    assert {(job["status"], job["losses"], job["usage"]["completion_tokens"]) for job in jobs} == {
        ("succeeded", 0, BODY["max_tokens"])
    }
    # What was handed over is compared, and some of what was not.
    found = [cluster.job(job["id"]) for job in jobs]
    handed_over = [job for job in found if job.attempt > 1]
    assert handed_over
    cluster.assert_undisturbed(*handed_over, *found[:CUSTOMERS])
    cluster.until_quiet()
