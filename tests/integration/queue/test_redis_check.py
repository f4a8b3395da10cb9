"""What the start of each role finds out about Redis."""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import redis
from redis.exceptions import BusyLoadingError, RedisError
from structlog.testing import capture_logs

from tasks.errors import RedisUnusableError
from tasks.settings import Settings
from tasks.store.redis_check import check_redis
from tests.conftest import running_redis
from tests.helpers.api_client import api, settings_for
from tests.helpers.fake_redis_server import fake_redis_server
from tests.integration.cluster import TINY, Cluster, long_generation
from tests.integration.stack import ROOT, START_S, Stack, free_port, until

PAGE = ROOT / "docs" / "reference" / "redis.md"
[ACL] = re.findall(r"^ACL SETUSER celeriac (.*)$", PAGE.read_text(), re.MULTILINE)


def settings(url: str) -> Settings:
    return Settings(redis_url=url)


def problem(url: str) -> str:
    """The sentence about a Redis that cannot be used."""
    with pytest.raises(RedisUnusableError) as error:
        check_redis(settings(url))
    text = str(error.value)
    assert "secret" not in text, "no message shows a password"
    return text


@contextmanager
def configured(redis_url: str, **values: str) -> Iterator[redis.Redis]:
    """A Redis with other settings."""
    with redis.Redis.from_url(redis_url) as admin:
        before = {name: admin.config_get(name)[name] for name in values}
        for name, value in values.items():
            admin.config_set(name, value)
        try:
            yield admin
        finally:
            for name, value in before.items():
                admin.config_set(name, value)


def with_login(url: str, login: str) -> str:
    return url.replace("unix://", f"unix://{login}@")


def user(admin: redis.Redis, rules: str) -> str:
    """Create the user `celeriac` with the password `secret`. Returns the part of a URL that logs in."""
    admin.execute_command("ACL", "SETUSER", "celeriac", *rules.replace(">PASSWORD", ">secret").split())
    return "celeriac:secret"


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_usable_redis_passes_and_keeps_no_key_and_no_connection(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        clients = len(admin.client_list())
        with capture_logs() as logs:
            check_redis(settings(redis_url))
        assert admin.dbsize() == 0
        until(lambda: len(admin.client_list()) == clients, "the end of its connections")
    assert logs == []


def test_wrong_and_missing_passwords(redis_url: str) -> None:
    assert "has no password, but CELERIAC_REDIS_URL has one" in problem(with_login(redis_url, ":secret"))
    assert "refuses the login" in problem(with_login(redis_url, "nobody:secret"))
    with configured(redis_url, requirepass="right"):
        assert "requires a password" in problem(redis_url)
        assert "refuses the login" in problem(with_login(redis_url, ":secret"))
        check_redis(settings(with_login(redis_url, ":right")))


def test_a_user_with_the_permissions_of_the_documentation_passes(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        check_redis(settings(with_login(redis_url, user(admin, ACL))))


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("-evalsha", "EVALSHA"),
        ("-brpop", "BRPOP"),
        ("-zadd", "ZADD"),
        ("-script", "SCRIPT LOAD"),
        ("-subscribe -psubscribe", "SUBSCRIBE"),
        ("-publish", "PUBLISH"),
        ("resetkeys ~celeriac:*", "~generate.check, ~unacked"),
        ("resetkeys ~generate.* ~unacked*", "SET"),
        ("resetchannels", "SUBSCRIBE &celeriac:check"),
    ],
)
def test_missing_permissions_are_named(redis_url: str, rule: str, named: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        text = problem(with_login(redis_url, user(admin, f"{ACL} {rule}")))
    assert "lacks permissions" in text
    assert named in text
    assert "docs/reference/redis.md" in text


def test_workers_and_api_run_with_the_documented_permissions(redis_url: str, tmp_path: Path) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        url = with_login(redis_url, user(admin, ACL))
        admin.acl_log_reset()
        cluster = Cluster(url, tmp_path, TINY)
        try:
            worker = cluster.worker(wait=False)
            api_process, _ = cluster.stack.api()
            port = free_port()
            flower = cluster.stack.run("flower", sys.executable, "-m", "celeriac", "flower", "--port", str(port))
            worker.wait_for_line(" ready.")

            def shown() -> bool:
                """Whether Flower has received an event of the worker."""
                assert flower.returncode is None, flower.output
                with suppress(httpx.TransportError):
                    return TINY.name in httpx.get(f"http://127.0.0.1:{port}/workers").text
                return False

            until(shown, "the worker in Flower", timeout_s=START_S)
            job_id = cluster.submit(long_generation(max_tokens=5))
            assert cluster.finished(job_id).tokens == 5
            assert worker.terminate() == 0
            for process in (worker, api_process, flower):
                assert "permission" not in process.output.lower(), process.output
        finally:
            cluster.close()
        denied = {entry["object"] for entry in admin.acl_log() if entry["username"] == "celeriac"}
        # redis-py tells Redis its own name and version, and does not mind if that is refused.
        assert denied <= {"client", "client|setinfo"}


def test_a_replica(socket_folder: Path) -> None:
    with running_redis(make(socket_folder / "replica"), "--replicaof", "127.0.0.1", "1") as url:
        assert "is a replica" in problem(url)


def test_cluster_mode(socket_folder: Path) -> None:
    # The port of the cluster's bus is 10,000 higher.
    while (port := free_port()) > 55_000:
        pass
    with running_redis(make(socket_folder / "cluster"), "--port", str(port), "--cluster-enabled", "yes") as url:
        assert "cluster mode, which Celery does not support" in problem(url)


def test_a_database_that_does_not_exist(redis_url: str) -> None:
    assert "has no such database" in problem(redis_url.replace("db=0", "db=999"))


def hello(version: str, mode: str) -> Callable[[list[str]], bytes]:
    words = ["server", "redis", "version", version, "mode", mode, "role", "master"]
    answer = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    return lambda command: answer.encode() if command[0] == "HELLO" else b"+OK\r\n"


def older_than_6(command: list[str]) -> bytes:
    if command[0] == "INFO":
        return b"$22\r\nredis_version:5.0.14\r\n\r\n"
    return b"-ERR unknown command `HELLO`, with args beginning with: \r\n" if command[0] == "HELLO" else b"+OK\r\n"


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        (hello("6.0.16", "standalone"), "version 6.0.16, and Celeriac needs 6.2"),
        (older_than_6, "version 5.0.14, and Celeriac needs 6.2"),
        (hello("7.2.0", "sentinel"), "is a Redis Sentinel"),
        (lambda _: b"-DENIED Redis is running in protected mode because ...\r\n", "is in protected mode"),
    ],
    ids=["old", "very old", "sentinel", "protected mode"],
)
def test_servers_that_are_simulated(reply: Callable[[list[str]], bytes], named: str) -> None:
    with fake_redis_server(reply) as (url, _):
        text = problem(url)
    assert named in text
    assert "\n" not in text


def test_a_redis_that_still_loads_its_data_is_no_problem_but_away() -> None:
    with (
        fake_redis_server(lambda _: b"-LOADING Redis is loading the dataset in memory\r\n") as (url, _),
        pytest.raises(BusyLoadingError),
    ):
        check_redis(settings(url))


def test_a_redis_that_is_away_is_no_problem() -> None:
    with pytest.raises(RedisError):
        check_redis(settings(f"redis://127.0.0.1:{free_port()}/0"))


def test_a_web_server() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        address = f"127.0.0.1:{server.server_address[1]}"
        try:
            assert "does not speak the Redis protocol" in problem(f"redis://{address}/0")
            assert "TLS" in problem(f"rediss://{address}/0")
        finally:
            server.shutdown()
            thread.join()


def test_a_plain_redis_behind_a_tls_url(socket_folder: Path) -> None:
    port = free_port()
    with running_redis(make(socket_folder / "plain"), "--port", str(port)):
        url = f"rediss://127.0.0.1:{port}/0"
        with pytest.raises(RedisUnusableError, match="does not use TLS: write redis:// instead"):
            check_redis(Settings(redis_url=url, redis_timeout_s=0.5))


def test_a_server_that_closes_each_connection_is_away() -> None:
    """As a TLS server does that gets something else; but this one speaks no TLS either."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        over = threading.Event()

        def close_all() -> None:
            while not over.is_set():
                try:
                    server.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=close_all)
        thread.start()
        try:
            with pytest.raises(RedisError):
                check_redis(settings(f"redis://127.0.0.1:{server.getsockname()[1]}/0"))
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_policy_with_which_jobs_get_lost_is_logged(redis_url: str, policy: str) -> None:
    with configured(redis_url, **{"maxmemory-policy": policy}), capture_logs() as logs:
        check_redis(settings(redis_url))
    [line] = logs
    assert (line["event"], line["log_level"], line["policy"]) == ("redis_may_evict_jobs", "warning", policy)


@pytest.mark.parametrize("role", ["api", "worker", "flower"])
def test_each_role_stops_with_one_sentence(redis_url: str, tmp_path: Path, role: str) -> None:
    stack = Stack(with_login(redis_url, ":secret"), tmp_path, checkpoint=str(TINY))
    try:
        command = ["-m", "celeriac", role, *([] if role == "worker" else ["--port", str(free_port())])]
        process = stack.run(role, sys.executable, *command)
        assert process.wait(60) == 1
        assert process.output.count("has no password, but CELERIAC_REDIS_URL has one") == 1
        assert "Traceback" not in process.output
        assert "secret" not in process.output
    finally:
        stack.close()


@pytest.mark.anyio
async def test_an_api_process_that_runs_tells_the_reason(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as admin:
        login = user(admin, ACL)
        async with api(settings_for(with_login(redis_url, login), reap_every_s=0.05)) as client:
            assert (await client.get("/v1/jobs")).status_code == 200
            user(admin, f"{ACL} -evalsha -eval")
            answer = await client.get("/v1/jobs")
            assert (answer.status_code, answer.json()["code"]) == (503, "redis_unavailable")
            assert "lacks a permission" in answer.json()["detail"]
            ready = await client.get("/health/ready")
            assert (ready.status_code, ready.json()["state"]) == (503, "REDIS_UNUSABLE")
            assert "EVALSHA" in ready.json()["detail"]
            assert (await client.get("/health")).json()["status"] == "error"
            user(admin, ACL)
            assert (await client.get("/v1/jobs")).status_code == 200
