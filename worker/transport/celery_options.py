"""Options of Celery's own command, `celery -A worker.app worker`, that a worker cannot obey."""

from __future__ import annotations

import sys

import click
from click.core import ParameterSource

#: Options of `celery` that choose another Redis or another configuration, by their names in Celery.
_REFUSED = {"broker": "--broker", "result_backend": "--result-backend", "loader": "--loader", "config": "--config"}


def refuse_other_configuration() -> None:
    """Exit with code 2 and one line if `celery` was told to use another Redis or configuration than the settings.

    The API would not find such a worker. Celery imports its application after it has parsed its own options, so click
    knows them. Variables such as CELERY_BROKER_URL are not options: they are removed.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return
    root = context.find_root()
    for name, option in _REFUSED.items():
        if root.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            print(
                f"Error: {option} cannot be used: only settings configure a worker. Set CELERIAC_REDIS_URL to the "
                "Redis that the API uses.",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(2)
