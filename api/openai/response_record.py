"""What a response's job keeps about the request beside what it generates. It is an entry of the job's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from tasks.job import Job
from tasks.job_id import JOB_ID

#: The name of the entry.
RECORD_NAME = "celeriac.response"

_JOB_PREFIX = "job_"
_PREFIX = "resp_"
_ITEM_PREFIX = "msg_"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRecord:
    """Facts about the request of a response."""

    #: Number of the last messages that are this response's own input. Before them are those of previous responses.
    own_messages: Annotated[int, Field(ge=1)]
    #: Whether the first message is `instructions`.
    has_instructions: bool
    previous_response_id: str | None
    background: bool
    store: bool
    service_tier: str
    max_output_tokens: int | None

    def to_metadata(self) -> Mapping[str, str]:
        """The record as an entry of the job's metadata."""
        return {RECORD_NAME: json.dumps(asdict(self), separators=(",", ":"))}

    @classmethod
    def of(cls, job: Job) -> ResponseRecord | None:
        """The record of a job; None if the job is no response."""
        text = job.metadata.get(RECORD_NAME)
        if text is None or job.generation.messages is None:
            return None
        try:
            found = _RECORD.validate_json(text, strict=True)
        except ValidationError:
            # The caller of another route has given metadata with this name.
            return None
        return found if found.own_messages + found.has_instructions <= len(job.generation.messages) else None


_RECORD = TypeAdapter(ResponseRecord)


def response_id(job_id: str) -> str:
    """The id of the response of a job."""
    return _PREFIX + job_id.removeprefix(_JOB_PREFIX)


def item_id(job_id: str) -> str:
    """The id of the answer's message."""
    return _ITEM_PREFIX + job_id.removeprefix(_JOB_PREFIX)


def input_id(job_id: str, index: int) -> str:
    """The id of a message of the input."""
    return f"{item_id(job_id)}_{index}"


def job_id_of(response: str) -> str | None:
    """The id of the job of a response; None if there can be no such response."""
    job_id = _JOB_PREFIX + response.removeprefix(_PREFIX)
    return job_id if response.startswith(_PREFIX) and JOB_ID.fullmatch(job_id) else None


def own_metadata(job: Job) -> dict[str, str]:
    """The metadata that the caller gave."""
    return {name: value for name, value in job.metadata.items() if name != RECORD_NAME}
