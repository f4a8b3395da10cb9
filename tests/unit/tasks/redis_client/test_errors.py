"""Which errors of Redis end by themselves, and which belong to one call."""

from __future__ import annotations

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    DataError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tasks.redis_client.errors import is_permanent


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("Connection refused"),
        RedisTimeoutError("Timeout reading from socket"),
        BusyLoadingError("Redis is loading the dataset in memory"),
        AuthenticationError("invalid username-password pair"),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ReadOnlyError("You can't write against a read only replica."),
        NoPermissionError("this user has no permissions to run the 'evalsha' command"),
        ResponseError("OOM command not allowed when used memory > 'maxmemory'. script: 3f1."),
        ResponseError("Error running script (call to f_3f1): @user_script:9: OOM command not allowed"),
        ResponseError("MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("Error running script (call to f_3f1): @user_script:9: Script killed by user"),
        ResponseError("max number of clients reached"),
    ],
)
def test_an_outage_or_a_refusal_is_not_permanent(error: RedisError) -> None:
    assert not is_permanent(error)


@pytest.mark.parametrize(
    "error",
    [
        ResponseError(
            "WRONGTYPE Operation against a key holding the wrong kind of value script: 3f1, on @user_script:9."
        ),
        ResponseError("Error running script (call to f_3f1): @user_script:9: WRONGTYPE Operation against a key"),
        ResponseError("user_script:9: attempt to perform arithmetic on local 'losses' (a nil value) script: 3f1"),
        ResponseError("The ID specified in XADD is equal or smaller than the target stream top item"),
        ResponseError("hash value is not an integer"),
        DataError("Invalid input of type: 'NoneType'."),
    ],
)
def test_an_error_of_one_call_is_permanent(error: RedisError) -> None:
    assert is_permanent(error)
