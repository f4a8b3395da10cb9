"""Log events as text: JSON for machines, short lines for people, on a terminal with a bar while a model loads."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from tasks.logs.events import LOADING, blocks, clock, is_for_people, loading_bar, made, sentence
from tasks.logs.printable import printable

_RESET = "\x1b[0m"
_BOLD = "\x1b[1m"
_ERROR = "\x1b[31m"
_LEVEL_COLOURS = {"warning": "\x1b[33m", "error": _ERROR, "critical": _ERROR}
#: Colours of the names of processes. Further processes reuse them.
_PROCESS_COLOURS = ("\x1b[36m", "\x1b[32m", "\x1b[35m", "\x1b[34m")
#: Returns to the beginning of a terminal's line, and clears it.
_CLEAR = "\r\x1b[K"
#: Events after which nothing is loaded any more.
_LOADING_ENDS = frozenset({"model_loaded", "engine_restarted", "cannot_serve", "giving_up"})


class Renderer(Protocol):
    """Makes text of events. Thread-safe."""

    def render(self, event: Mapping[str, Any], process: str | None = None) -> str:
        """The event as text with its line end; empty if it is not shown. `process`: the process that it is from."""

    def announce(self, text: str, fields: Mapping[str, object], *, error: bool = False) -> str:
        """A sentence of `celeriac serve` itself. `fields`: the values in it, for machines."""

    def forget(self, process: str) -> str:
        """The text that removes what the terminal shows of a process that has ended."""


class JsonRenderer:
    """One JSON object in one line for each event. The field `process` names the process."""

    def render(self, event: Mapping[str, Any], process: str | None = None) -> str:
        """The event as one line."""
        named = event if process is None else {**event, "process": process}
        return json.dumps(named, default=repr) + "\n"

    def announce(self, text: str, fields: Mapping[str, object], *, error: bool = False) -> str:
        """The sentence as an event of the process `serve`."""
        return self.render({**made(text, level="error" if error else "info"), **fields}, "serve")

    def forget(self, process: str) -> str:
        """Nothing: each line stands for itself."""
        return ""


class PeopleRenderer:
    """Short lines: the time, the process if there are several, and what happened."""

    def __init__(
        self, *, terminal: bool, colours: bool, everything: bool = False, processes: tuple[str, ...] = ()
    ) -> None:
        """`terminal`: whether a bar can be drawn. `everything`: also show what only machines need."""
        self._terminal = terminal
        self._colours = colours
        self._everything = everything
        self._width = max(map(len, processes), default=0)
        self._process_colours = {
            name: _PROCESS_COLOURS[index % len(_PROCESS_COLOURS)] for index, name in enumerate(processes)
        }
        # A signal handler may write while its thread writes.
        self._lock = threading.RLock()
        #: What the last line of the terminal shows for each process that loads.
        self._bars: dict[str, str] = {}

    def render(self, event: Mapping[str, Any], process: str | None = None) -> str:
        """The event as text."""
        name = event.get("event")
        with self._lock:
            if self._terminal and name == LOADING:
                self._bars[process or ""] = loading_bar(event)
                return _CLEAR + self._bar_line()
            shown = self._everything or is_for_people(event, together=process is not None)
            text = self._line(event, process) if shown else ""
            if not self._bars:
                return text
            if name in _LOADING_ENDS:
                self._bars.pop(process or "", None)
            return _CLEAR + text + self._bar_line() if text else ""

    def announce(self, text: str, fields: Mapping[str, object], *, error: bool = False) -> str:
        """The sentence alone."""
        with self._lock:
            line = self._coloured(printable(text, limit=None), _ERROR if error else _BOLD) + "\n"
            return _CLEAR + line + self._bar_line() if self._bars else line

    def forget(self, process: str) -> str:
        """Remove the bar of a process."""
        with self._lock:
            return "" if self._bars.pop(process, None) is None else _CLEAR + self._bar_line()

    def _bar_line(self) -> str:
        bars = "  ".join(f"{name} {bar}".lstrip() for name, bar in self._bars.items())
        # A bar that went on in the next line could not be removed.
        return bars[: shutil.get_terminal_size().columns - 1]

    def _line(self, event: Mapping[str, Any], process: str | None) -> str:
        level = str(event.get("level", ""))
        text = sentence(event)
        if level in _LEVEL_COLOURS:
            text = self._coloured(f"{level}: {text}", _LEVEL_COLOURS[level])
        name = ""
        if process is not None:
            column = f"{printable(process):<{self._width}}"
            name = f"{self._coloured(column, self._process_colours.get(process, ''))} | "
        return f"{name}{clock(event)} {text}\n{blocks(event)}"

    def _coloured(self, text: str, colour: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colours and colour else text
