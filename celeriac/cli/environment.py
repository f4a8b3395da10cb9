"""What a command needs around it: settings that are valid, and packages that are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tasks.settings import Settings


class EnvironmentFault(click.ClickException):
    """A setting that cannot be used: wrong usage, like a wrong option."""

    exit_code = 2


def load_settings() -> Settings:
    """The settings of this process. EnvironmentFault where one is wrong."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from tasks.settings import settings

    try:
        return settings()
    except ValidationError as error:
        faults = [f"CELERIAC_{str(fault['loc'][0]).upper()}: {fault['msg']}" for fault in error.errors()]
        raise EnvironmentFault("; ".join(faults)) from error
    except SettingsError as error:
        raise EnvironmentFault(f"A CELERIAC_* variable cannot be read: {error}") from error


def load_queue_settings() -> Settings:
    """The settings of a role that uses the queue: the URL of Redis is checked as well, though not asked."""
    from tasks.errors import ConfigurationError
    from tasks.store.connections import parse

    settings = load_settings()
    try:
        parse(settings.redis_url)
    except ConfigurationError as error:
        raise EnvironmentFault(str(error)) from error
    return settings


def require(*packages: str, extra: str) -> None:
    """Raises ClickException where a package is not installed; `extra` is the extra of ours that brings it."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise click.ClickException(
            f"This command needs {', '.join(missing)}, not installed here: pip install 'celeriac[{extra}]'."
        )


@contextmanager
def readable_checkpoint_errors() -> Iterator[None]:
    """Errors of checkpoints as one line."""
    from worker.checkpoints.errors import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
