"""The Python client, the command line, and the launcher of `celeriac serve`.

from celeriac import InferenceClient

with InferenceClient("http://127.0.0.1:8000") as client:
    print(client.generate("123+456=", temperature=0.0)["generated_text"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriac.client import (
        ApiError,
        AsyncInferenceClient,
        AttemptEvent,
        ConfigurationError,
        DoneEvent,
        ErrorEvent,
        Event,
        InferenceClient,
        InvalidRequestError,
        Job,
        JobFailedError,
        NotFoundError,
        QueueEvent,
        QueueFullError,
        ReconnectEvent,
        ServerUnreachableError,
        StatusEvent,
        TokenEvent,
        TokenLogprob,
        TokenLogprobs,
        ToolCall,
        UnavailableError,
        UnexpectedAnswerError,
        WaitTimeoutError,
    )
    from celeriac.errors import CeleriacError

__all__ = [
    "ApiError",
    "AsyncInferenceClient",
    "AttemptEvent",
    "CeleriacError",
    "ConfigurationError",
    "DoneEvent",
    "ErrorEvent",
    "Event",
    "InferenceClient",
    "InvalidRequestError",
    "Job",
    "JobFailedError",
    "NotFoundError",
    "QueueEvent",
    "QueueFullError",
    "ReconnectEvent",
    "ServerUnreachableError",
    "StatusEvent",
    "TokenEvent",
    "TokenLogprob",
    "TokenLogprobs",
    "ToolCall",
    "UnavailableError",
    "UnexpectedAnswerError",
    "WaitTimeoutError",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: a worker process, which `celeriac worker` starts, does not need the HTTP client.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "celeriac.errors" if name == "CeleriacError" else "celeriac.client"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
