"""Renders one Jinja template, in a process that does nothing else. The file is run as a script.

A template belongs to the checkpoint, and the sandbox of Jinja keeps it from files and code, but not from using time and
memory without bound. Only the system can limit those, and only for a process.

Standard input has a line of JSON with the template, and then one for each conversation; standard output has the
answers. The environment is that of transformers, so that templates written for it give the same text:
https://github.com/huggingface/transformers/blob/main/src/transformers/utils/chat_template_utils.py
"""

from __future__ import annotations

import json
import math
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Time of the processor for one conversation, in seconds, rounded up. Real templates need about a millisecond.
CPU_S = 1
#: Memory of the process in bytes. It uses 40 million for itself.
MEMORY_BYTES = 512 << 20
#: Longest text that a template may write, in characters.
MAX_CHARACTERS = 8 << 20


class RefusedError(TemplateError):
    """The template called `raise_exception`."""


class GenerationBlock(Extension):
    """The tags `generation` and `endgeneration`, which mark the answers in training data. The content stays."""

    tags = {"generation"}  # noqa: RUF012 (the name and type are Jinja's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Renderer:
    """A compiled template."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        """Raises what Jinja raises for a wrong template."""
        self._now = 0.0
        self._variables = variables
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda format_: datetime.fromtimestamp(self._now).strftime(format_)
        self._template = environment.from_string(source)

    def render(self, messages: list[dict[str, str]], now: float) -> str:
        """The text of a conversation, up to where the answer begins. Raises what the template raises."""
        self._now = now
        parts = []
        length = 0
        for part in self._template.generate(
            **self._variables, messages=messages, tools=None, documents=None, add_generation_prompt=True
        ):
            parts.append(part)
            length += len(part)
            if length > MAX_CHARACTERS:
                raise OverflowError(f"it writes more than {MAX_CHARACTERS:,} characters")
        return "".join(parts)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter also escapes `<` and `>`, for web pages."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: object) -> NoReturn:
    """`raise_exception` of templates."""
    raise RefusedError(f"{message}")


def limit_time() -> None:
    """The system ends the process if the next step takes longer than `CPU_S`."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def limit_memory() -> None:
    """Larger allocations raise MemoryError."""
    # macOS has no such limit.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))


def receive() -> Any:
    """The next line, decoded; None at the end of the input."""
    line = sys.stdin.buffer.readline()
    return json.loads(line.decode("utf-8", "surrogatepass")) if line else None


def answer(**fields: str) -> None:
    """Write an answer."""
    sys.stdout.buffer.write(json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    sys.stdout.buffer.flush()


def explained(error: Exception) -> str:
    """An error in words."""
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    return f"{type(error).__name__}: {error}"[:1000]


def main() -> None:
    """Serve until the input ends."""
    # A Ctrl-C in the terminal is for the parent, which then closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_memory()
    first = receive()
    limit_time()
    try:
        renderer = Renderer(**first)
    except Exception as error:  # noqa: BLE001 (a template may raise anything)
        answer(failed=explained(error))
        return
    answer(ready="")
    while (request := receive()) is not None:
        limit_time()
        try:
            text = renderer.render(**request)
        except RefusedError as error:
            answer(refused=f"{error}"[:1000])
        except Exception as error:  # noqa: BLE001
            answer(failed=explained(error))
        else:
            answer(text=text)


if __name__ == "__main__":
    main()
