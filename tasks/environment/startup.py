"""The settings for modules that `uvicorn` and `celery` import: `api.app` and `worker.app`."""

from __future__ import annotations

import sys

from tasks.environment.unknown_variables import report_unknown_variables
from tasks.errors import ConfigurationError
from tasks.redis_client.connections import parse
from tasks.settings import Settings, settings


def settings_or_exit() -> Settings:
    """The settings of a role that uses the queue. If one is invalid: prints one line, and exits with code 2.

    Also checks the Redis URL, without connecting to it, and reports unknown variables.
    """
    report_unknown_variables()
    try:
        chosen = settings()
        parse(chosen.redis_url)
    except ConfigurationError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    return chosen
