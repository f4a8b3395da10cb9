"""The base class of all bodies, and the type of times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema


def _rfc3339(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


#: A time in UTC with milliseconds, such as `2026-01-02T03:04:05.678Z`.
Moment = Annotated[
    datetime,
    PlainSerializer(_rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]


class Model(BaseModel):
    """Base class of all bodies. It allows field names that begin with `model`, and refuses NaN and infinity.

    The text of a validation error does not contain the value, which may be a prompt: such a text may reach a log.
    """

    model_config = ConfigDict(protected_namespaces=(), allow_inf_nan=False, hide_input_in_errors=True)
