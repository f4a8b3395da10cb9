"""Strict parsing of JSON bodies: any body that is not JSON by RFC 8259 is answered with 422.

FastAPI by itself accepts NaN and Infinity, and answers 400 if a body is not UTF-8, is nested too deeply, or has an
integer of thousands of digits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute


class StrictRequest(Request):
    """A request whose `json` raises JSONDecodeError for any body that is not JSON by RFC 8259."""

    async def json(self) -> Any:
        """The parsed body."""
        body = await self.body()
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError("The body is not UTF-8", "", error.start) from error
        except (ValueError, RecursionError) as error:
            message = "Nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise json.JSONDecodeError(message, "", 0) from error


class StrictRoute(APIRoute):
    """A route that parses its body with `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, called with a `StrictRequest`."""
        handler = super().get_route_handler()

        async def strict_handler(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict_handler


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
