"""Which connections have channels that keep their Redis client."""

from __future__ import annotations

import pytest

from tasks.celery_app import make_app
from tasks.settings import Settings
from worker.transport.channel import ReusingAMQP, ReusingChannel


@pytest.mark.parametrize(
    "url",
    ["redis://localhost:6379/1", "rediss://user:secret@localhost:6379/1", "unix:///run/redis.sock?db=1"],
)
def test_every_connection_of_the_application_has_such_channels(url: str) -> None:
    app = make_app(Settings(redis_url=url))
    plain = app.connection().info()
    app = make_app(Settings(redis_url=url))
    app.amqp_cls = ReusingAMQP
    connections = (
        app.connection_for_read(),
        app.connection_for_write(),
        app.connection().clone(),
        app.pool.connection,
        app.producer_pool.connections.connection,
    )
    for connection in connections:
        assert connection.transport.Channel is ReusingChannel
        assert connection.info() == plain


@pytest.mark.parametrize(
    "url", ["unix://me:s3cr3t%2F%40@/run/redis.sock?db=1", "unix:///run/redis.sock?password=s3cr3t"]
)
def test_the_description_of_a_connection_to_a_socket_has_no_password(url: str) -> None:
    app = make_app(Settings(redis_url=url))
    app.amqp_cls = ReusingAMQP
    connection = app.connection_for_read()
    assert connection.info()["hostname"] == connection.clone().info()["hostname"]
    assert "s3cr3t" not in str(connection.info() | {"password": None})
    # The connection itself still has it.
    assert "s3cr3t" in connection.as_uri(include_password=True)


def test_the_worker_selects_them() -> None:
    from worker.app import app

    assert app.amqp_cls is ReusingAMQP
    assert app.connection_for_read().transport.Channel is ReusingChannel
