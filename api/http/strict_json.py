"""Strict parsing of JSON bodies: any body that is not JSON by RFC 8259 is answered with 422.

FastAPI by itself accepts NaN and Infinity, takes the last of two members with the same name, and answers 400 if a body
is not UTF-8, is nested too deeply, or has an integer of thousands of digits.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.http.problems import presentable

#: Most members of one JSON object. Each may be an error of its own, so this bounds the work for a wrong body.
MAX_MEMBERS = 1000


class StrictRequest(Request):
    """A request whose `json` raises JSONDecodeError for any body that is not JSON by RFC 8259."""

    _parsed: Any

    async def json(self) -> Any:
        """The body, parsed once."""
        if not hasattr(self, "_parsed"):
            self._parsed = _parse(await self.body())
        return self._parsed


class StrictRoute(APIRoute):
    """A route that parses its body with `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, called with a `StrictRequest`."""
        handler = super().get_route_handler()

        async def strict_handler(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict_handler


def _parse(body: bytes) -> Any:
    try:
        # A byte order mark may be ignored.
        text = body.decode("utf-8-sig")
        with _without_garbage_collection():
            return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("The body is not UTF-8", "", error.start) from error
    except (ValueError, RecursionError) as error:
        message = "Nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise json.JSONDecodeError(message, "", 0) from error


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Parse without searching for garbage, which takes ten times as long as a body of many small arrays."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(members) > MAX_MEMBERS:
        raise ValueError(f"An object has {len(members)} members, and may have {MAX_MEMBERS}")
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise ValueError(f"An object has two members {presentable(name)!r}")
        found[name] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
