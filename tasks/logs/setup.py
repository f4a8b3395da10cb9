"""Sets up the logs of a process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from tasks.logs.output import output
from tasks.logs.renderers import JsonRenderer, PeopleRenderer, Renderer
from tasks.logs.sink import LogSink
from tasks.logs.text_stream import replace_standard_streams
from tasks.logs.tracebacks import traceback_text
from tasks.settings import Settings

_sinks: list[LogSink] = []


def setup_logging(settings: Settings) -> None:
    """Write all log records of this process (structlog's and the standard library's) to stderr, in one format.

    From now on nothing that Python prints to stdout or stderr blocks.
    """
    sink = LogSink(output, renderer_for(settings, sys.stderr))
    _sinks[:] = [sink]
    if sys.stderr is None:
        # The process was started without it, and another file may have its number.
        output.discard(2)
    replace_standard_streams(output)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
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
    handler = _SinkHandler(sink)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(traceback_text),
                handler.take,
            ],
        )
    )
    logging.getLogger("asyncio").addFilter(_first_line)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # These log one line for each request at level INFO.
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def forward_line(line: str) -> None:
    """Write a line of a process that this process started: an event, or any text."""
    if _sinks:
        _sinks[0].line(line)
    else:
        print(line, file=sys.stderr, flush=True)


def renderer_for(settings: Settings, stream: TextIO | None, processes: tuple[str, ...] = ()) -> Renderer:
    """The renderer for a stream. `processes`: the names of all processes whose events it gets; empty: only this one."""
    terminal = stream is not None and stream.isatty()
    if settings.log_format == "json" or (settings.log_format == "auto" and not terminal):
        return JsonRenderer()
    return PeopleRenderer(
        terminal=terminal,
        colours=(terminal and not os.environ.get("NO_COLOR")) or bool(os.environ.get("FORCE_COLOR")),
        everything=settings.log_level == "debug",
        processes=processes,
    )


def _first_line(record: logging.LogRecord) -> bool:
    """Keep only the first line of a message of asyncio. The others are reprs, also of errors that quote a prompt."""
    record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


class _SinkHandler(logging.Handler):
    """Sends the events of this process to the sink."""

    def __init__(self, target: LogSink) -> None:
        super().__init__()
        self._target = target

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record."""
        try:
            # The last processor takes the event.
            self.format(record)
        except (TypeError, ValueError):
            # A record that cannot be formatted must not stop its caller.
            self.handleError(record)

    def take(self, _logger: Any, _name: str, event: MutableMapping[str, Any]) -> str:
        """The last processor."""
        self._target.event(event)
        return ""
