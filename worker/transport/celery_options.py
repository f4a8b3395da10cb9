"""Options of Celery's own command, `celery -A worker.app worker`, that a worker cannot obey.

The API would not find such a worker, or its jobs would wait for a worker that never takes them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click
from click.core import ParameterSource

#: Options of `celery` that choose another Redis or another configuration, by their names in Celery.
_CONFIGURATION = {
    "broker": "--broker",
    "result_backend": "--result-backend",
    "loader": "--loader",
    "config": "--config",
}
#: Options of `celery worker` that choose other queues.
_QUEUES = {"queues": "--queues", "exclude_queues": "--exclude-queues"}


def refuse_other_configuration() -> None:
    """Exit with code 2 and one line if `celery` was told to use another Redis or configuration than the settings.

    Celery imports its application after it has parsed its own options, so click knows them. Variables such as
    CELERY_BROKER_URL are not options: they are removed.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return
    root = context.find_root()
    for name, option in _CONFIGURATION.items():
        if root.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            _refuse(option, "Set CELERIAC_REDIS_URL to the Redis that the API uses.")


def refuse_other_queues(options: Mapping[str, Any]) -> None:
    """Exit with code 2 and one line if `options`, those of `celery worker`, choose queues."""
    for name, option in _QUEUES.items():
        if options.get(name):
            _refuse(option, "A worker takes the jobs of CELERIAC_CHECKPOINT.")


def _refuse(option: str, what_to_do: str) -> NoReturn:
    message = f"Error: {option} cannot be used: only settings configure a worker. {what_to_do}"
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(2)
