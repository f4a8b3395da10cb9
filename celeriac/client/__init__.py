"""The Python client. It needs only httpx and the standard library."""

from celeriac.client.async_client import AsyncInferenceClient
from celeriac.client.errors import (
    ApiError,
    ConfigurationError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    ServerUnreachableError,
    UnavailableError,
    UnexpectedAnswerError,
)
from celeriac.client.events import (
    AttemptEvent,
    DoneEvent,
    ErrorEvent,
    Event,
    QueueEvent,
    ReconnectEvent,
    StatusEvent,
    TokenEvent,
)
from celeriac.client.guide import GeneratedText, Health, Info
from celeriac.client.job import Job, JobFailedError, ToolCall, WaitTimeoutError
from celeriac.client.logprobs import TokenLogprob, TokenLogprobs
from celeriac.client.sync_client import InferenceClient

__all__ = [
    "ApiError",
    "AsyncInferenceClient",
    "AttemptEvent",
    "ConfigurationError",
    "DoneEvent",
    "ErrorEvent",
    "Event",
    "GeneratedText",
    "Health",
    "InferenceClient",
    "Info",
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
