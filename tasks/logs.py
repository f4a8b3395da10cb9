"""Logs of all roles: structured events, as readable lines on a terminal, as JSON elsewhere.

Prompts and generated texts are never logged.
"""

import logging
import os
import sys

import structlog
from structlog.typing import Processor

from tasks.settings import Settings
from tasks.tracebacks import plain_traceback, traceback_text


def _first_line(record: logging.LogRecord) -> bool:
    """Keep only the first line of a message of asyncio. The others are reprs, also of errors that quote a prompt."""
    record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


def setup_logging(settings: Settings) -> None:
    """Write all log records of this process (structlog's and the standard library's) to stderr, in one format."""
    human = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
        structlog.processors.StackInfoRenderer(),
    ]
    # `celeriac serve` reads our stderr through a pipe. It sets FORCE_COLOR if it writes to a terminal itself.
    colours = sys.stderr.isatty() or bool(os.environ.get("FORCE_COLOR"))
    final: list[Processor] = (
        # structlog would use rich, whose tracebacks show local variables, which may contain prompts.
        [structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=16, exception_formatter=plain_traceback)]
        if human
        else [structlog.processors.ExceptionRenderer(traceback_text), structlog.processors.JSONRenderer()]
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
    logging.getLogger("asyncio").addFilter(_first_line)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # These log one line for each request at level INFO.
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
