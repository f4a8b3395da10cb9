"""Logs of all roles: structured events, as short lines on a terminal, as JSON elsewhere. Writing them never blocks.

Prompts and generated texts are never logged.
"""

from tasks.logs.output import flush_logs
from tasks.logs.setup import forward_line, setup_logging

__all__ = ["flush_logs", "forward_line", "setup_logging"]
