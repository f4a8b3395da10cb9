"""JSON bodies, strictly: whatever Python's parser would let through or trip over is an error of the caller.

Left alone, FastAPI reads NaN and Infinity, which JSON does not have, and answers 400 instead of 422 where a body is no
UTF-8, nests too deep, or has an integer of thousands of digits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute


class StrictRequest(Request):
    """A request whose `json` raises JSONDecodeError for everything that is not JSON as RFC 8259 has it."""

    async def json(self) -> Any:
        """The body's value."""
        body = await self.body()
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError("The body is not UTF-8", "", error.start) from error
        except (ValueError, RecursionError) as error:
            message = "Nested too deep" if isinstance(error, RecursionError) else str(error)
            raise json.JSONDecodeError(message, "", 0) from error


class StrictRoute(APIRoute):
    """A route that reads its body with `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the stricter request."""
        handler = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strictly


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
