"""Logs of every role: structured events, readable lines on a terminal, JSON elsewhere. Never a prompt or a text."""

import logging
import os
import sys

import structlog
from structlog.typing import Processor

from tasks.settings import Settings


def setup_logging(settings: Settings) -> None:
    """Send structlog's and the standard library's records of this process to stderr, in one format."""
    human = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
        structlog.processors.StackInfoRenderer(),
    ]
    # FORCE_COLOR is how `celeriac serve`, whose pipe our stderr is, says that a terminal is behind it.
    colours = sys.stderr.isatty() or "FORCE_COLOR" in os.environ
    final: list[Processor] = (
        # Plain tracebacks: rich's, which structlog prefers, show local variables, and those may hold prompts.
        [
            structlog.dev.ConsoleRenderer(
                colors=colours, pad_event_to=16, exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # One line for each request of a client library is noise at our levels.
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
