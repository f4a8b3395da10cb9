from __future__ import annotations

import pytest

from tasks.celery_app import make_app
from tasks.errors import ConfigurationError
from tasks.redis_client.connections import broker_url, make_async, make_sync, redacted
from tasks.settings import Settings


@pytest.mark.parametrize(
    ("url", "for_kombu"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://host", "redis://host/0"),
        ("redis://host/2?db=4", "redis://host/4"),
        ("redis://user:p%40ss%2Fword@host:7000/2", "redis://user:p%40ss%2Fword@host:7000/2"),
        ("redis://host/1?socket_timeout=3", "redis://host/1"),
        ("rediss://:secret@host/1", "rediss://:secret@host/1?ssl_cert_reqs=required"),
        ("rediss://host/1?ssl_cert_reqs=none", "rediss://host/1?ssl_cert_reqs=none"),
        ("redis://host:7000/2?password=p%23ss&username=me", "redis://me:p%23ss@host:7000/2"),
        ("redis://:one@host/2?password=other", "redis://:one@host/2"),
        ("rediss://[::1]:7000/0?password=s", "rediss://:s@[::1]:7000/0?ssl_cert_reqs=required"),
        ("unix:///run/redis.sock?password=p%40ss", "redis+socket://:p%40ss@/run/redis.sock?virtual_host=0"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix:///run/a%20folder/redis.sock?db=5", "redis+socket:///run/a%20folder/redis.sock?virtual_host=5"),
        ("unix://:p%40ss%2F@/run/redis.sock?db=1", "redis+socket://:p%40ss%2F@/run/redis.sock?virtual_host=1"),
        ("unix://me:secret@/redis.sock", "redis+socket://me:secret@/redis.sock?virtual_host=0"),
    ],
)
def test_urls_for_kombu(url: str, for_kombu: str) -> None:
    assert broker_url(url) == for_kombu
    assert make_app(Settings(redis_url=url)).conf.broker_url == for_kombu


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://host", "redis://host:port/0", "unix://", "amqp://host"])
def test_an_invalid_url_is_refused_with_the_settings_name(url: str) -> None:
    settings = Settings(redis_url=url)
    for make in (make_sync, make_async, make_app):
        with pytest.raises(ConfigurationError, match="CELERIAC_REDIS_URL"):
            make(settings)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cr3t#1@host:6379/0",
        "redis://user:s3cr3t/1@host:6379/0",
        "redis://:s3cr3t?a@host",
        "redis://:s3cr3t\u2100@host/0",
        "redis://:s3cr3t]@[host/0",
        "redis://:s3cr3t@host:99999/0",
        "redis://host/0?password=s3cr3t&db=x",
        "http://:s3cr3t@host",
        "unix://:s3cr3t@",
    ],
)
def test_an_error_about_the_url_does_not_contain_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_app(Settings(redis_url=url))
    assert "CELERIAC_REDIS_URL" in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://me:secret@host:7000/2?password=secret", "redis://host:7000/2"),
        ("unix://:secret@/run/redis.sock?db=0", "unix:///run/redis.sock"),
    ],
)
def test_logs_show_no_password(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_messages_are_json_with_one_list_for_each_queue_and_no_results() -> None:
    conf = make_app(Settings(visibility_timeout_s=7)).conf
    assert (conf.task_serializer, conf.accept_content, conf.result_backend) == ("json", ["json"], None)
    assert conf.broker_transport_options["priority_steps"] == [0]
    assert conf.broker_transport_options["visibility_timeout"] == 7
    assert conf.task_acks_late
    assert conf.worker_prefetch_multiplier == 1


def test_a_password_with_special_characters_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="such as %23 for #") as error:
        make_sync(Settings(redis_url="redis://:secret#word@host:6379/0"))
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis://host/0?bogus=1", "option that does not exist.*bogus"),
        ("rediss://host/0?ssl_ca_certs=/nonexistent.pem", "/nonexistent.pem is not a file that can be read"),
        ("rediss://host/0?ssl_cert_reqs=bogus", "bogus"),
    ],
)
def test_options_of_the_url_are_checked_before_the_first_connection(url: str, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        make_sync(Settings(redis_url=url))
