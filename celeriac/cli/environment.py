"""Checks of what a command needs: valid settings and installed packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tasks.settings import Settings


class InvalidSettingError(click.ClickException):
    """A setting is invalid. The exit code is that of an invalid option."""

    exit_code = 2


def load_settings() -> Settings:
    """The settings of this process. Reports unknown variables. Raises InvalidSettingError."""
    from tasks.environment.unknown_variables import report_unknown_variables
    from tasks.errors import ConfigurationError
    from tasks.settings import settings

    report_unknown_variables()
    try:
        return settings()
    except ConfigurationError as error:
        raise InvalidSettingError(str(error)) from error


def load_queue_settings() -> Settings:
    """The settings of a role that uses the queue. Also checks the Redis URL, without connecting to it.

    Removes the variables that would change Celery. Call it before Celery is imported.
    """
    from tasks.environment.foreign_variables import remove_celery_variables
    from tasks.errors import ConfigurationError
    from tasks.redis_client.connections import parse

    remove_celery_variables()
    settings = load_settings()
    try:
        parse(settings.redis_url)
    except ConfigurationError as error:
        raise InvalidSettingError(str(error)) from error
    return settings


def check_redis_of(settings: Settings) -> None:
    """Check the Redis of the settings. Raises ClickException if it can never serve the queue.

    A Redis that is away is no error here: it may come later.
    """
    from redis.exceptions import RedisError

    from tasks.errors import RedisUnusableError
    from tasks.store.redis_check import check_redis

    try:
        check_redis(settings)
    except RedisUnusableError as error:
        raise click.ClickException(str(error)) from error
    except RedisError as error:
        click.echo(f"Redis is away ({error}). Waiting for it.", err=True)


def require(*packages: str, extra: str) -> None:
    """Raise ClickException if a package is not installed. `extra`: the extra of this project that installs it."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise click.ClickException(
            f"This command needs {', '.join(missing)}. Install with: pip install 'celeriac[{extra}]'."
        )


@contextmanager
def readable_checkpoint_errors() -> Iterator[None]:
    """Turn a CheckpointError into an error of one line with exit code 1."""
    from worker.checkpoints.errors import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
