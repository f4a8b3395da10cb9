"""Strict query parameters: a parameter that the route does not have, or that is given twice, is answered with 422.

Otherwise a misspelled parameter would be ignored, and the caller would not notice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant

from api.http.problems import ApiError, Code, FieldError, presentable, shown, summary
from api.http.strict_json import StrictRoute


class StrictQueryRoute(StrictRoute):
    """A route with a strict JSON body and strict query parameters."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of `StrictRoute`, called if the query is valid."""
        handler = super().get_route_handler()
        known = sorted(_names(self.dependant))

        async def strict_handler(request: Request) -> Response:
            if request.scope["query_string"]:
                given = Counter(name for name, _ in request.query_params.multi_items())
                if errors := shown(_errors(given, known)):
                    raise ApiError(Code.INVALID_REQUEST, summary(errors), errors=errors)
            return await handler(request)

        return strict_handler


def _names(dependant: Dependant) -> set[str]:
    """The query parameters of a route and of its dependencies."""
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*map(_names, dependant.dependencies))


def _errors(given: Counter[str], known: list[str]) -> Iterator[FieldError]:
    has = f"It has {', '.join(known)}." if known else "It has none."
    for name, times in given.items():
        loc = ("query", str(presentable(name)))
        if name not in known:
            yield FieldError(loc, f"This route has no such query parameter. {has}", "unknown_parameter", name)
        elif times > 1:
            yield FieldError(loc, f"This query parameter is given {times} times.", "repeated_parameter", name)
