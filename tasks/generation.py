"""A request to the model, and the reasons why a text ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from tasks import record
from tasks.sampling_params import SAMPLING_FIELDS, SamplingParams


class FinishReason(StrEnum):
    """Why a text ended. The engine, the record and the API share these values."""

    #: The model ended the text, or a stop text was found.
    STOP = "stop"
    #: `stop_on_newline` was set, and the last character is a newline.
    NEWLINE = "newline"
    #: `max_tokens` tokens were generated, or the context is full.
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A validated request. The record stores it as JSON in the field `input`."""

    prompt: str
    #: Always with a seed.
    sampling: SamplingParams
    #: Fields that this version does not know, from a process of a newer version, with their JSON values.
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The request as one line of JSON, an object of the prompt and the sampling fields.

        Fields that are unset (None, False) are left out: a process of an older version can run the job unless the
        request uses a field that it does not know.
        """
        set_fields = ((name, value) for name, value in asdict(self.sampling).items() if value is not None)
        sampling = {name: value for name, value in set_fields if value is not False}
        fields = {"prompt": self.prompt, **sampling, **self.unknown}
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Generation:
        """The request that `to_json` encoded, perhaps in another version.

        Values outside of the bounds are accepted: see `unsupported`. Raises ValueError or TypeError for anything that
        is no such request.
        """
        fields = record.json_value(text if isinstance(text, str) else text.decode(), dict)
        prompt = record.checked_text(fields.pop("prompt", None))
        known = {one.name: fields.pop(one.name) for one in SAMPLING_FIELDS if one.name in fields}
        sampling = SamplingParams(
            **{one.name: one.checked(known[one.name]) for one in SAMPLING_FIELDS if one.name in known}
        )
        if sampling.seed is None:
            raise ValueError("no seed")
        return cls(prompt=prompt, sampling=sampling, unknown=fields)

    def unsupported(self) -> list[str]:
        """Names of the fields with which this version cannot run the request.

        It does not know the field, or the value is outside of its bounds.
        """
        beyond = [one.name for one in SAMPLING_FIELDS if not one.bounds.contain(getattr(self.sampling, one.name))]
        return [*self.unknown, *beyond]
