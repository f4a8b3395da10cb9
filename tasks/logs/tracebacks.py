"""Tracebacks for the log: where an error happened, without messages that may quote a prompt or a text.

`int("...")`, `json.loads`, a missing key and pydantic put the value that they could not use into their message.
"""

from __future__ import annotations

import traceback
from types import TracebackType

#: Kinds of exceptions whose messages may contain the value that caused them.
_QUOTING = (ValueError, TypeError, LookupError, AssertionError, UnicodeError)
#: Packages whose own exceptions have messages that were written for people.
_OURS = ("api", "tasks", "worker", "celeriac", "bench")
HIDDEN = "(the message is not logged: it may contain a prompt)"

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def traceback_text(exc_info: ExcInfo) -> str:
    """The traceback with its causes, as Python prints it, but with `HIDDEN` in place of messages that may quote."""
    return "".join(_parts(exc_info[1], set())).rstrip("\n")


def _parts(error: BaseException, seen: set[int]) -> list[str]:
    seen.add(id(error))
    parts: list[str] = []
    before = error.__context__ if error.__cause__ is None and not error.__suppress_context__ else error.__cause__
    link = (
        "During handling of the above exception, another exception occurred:"
        if error.__cause__ is None
        else "The above exception was the direct cause of the following exception:"
    )
    if before is not None and id(before) not in seen:
        parts += [*_parts(before, seen), f"\n{link}\n\n"]
    if error.__traceback__ is not None:
        parts += ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    parts.append(f"{_name(type(error))}: {_message(error)}\n")
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            parts += ["\nOne of its exceptions:\n\n", *_parts(inner, seen)]
    return parts


def _name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _message(error: BaseException) -> str:
    ours = type(error).__module__.partition(".")[0] in _OURS
    return HIDDEN if isinstance(error, _QUOTING) and not ours else str(error)
