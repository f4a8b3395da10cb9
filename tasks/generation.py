"""What a caller asks of the model, and why a text ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from tasks.sampling_params import SamplingParams


class FinishReason(StrEnum):
    """Why a text ended, for the engine, the record and the API."""

    #: The model ended it, or a stop text was found.
    STOP = "stop"
    #: `stop_on_newline`, and the last character is that newline.
    NEWLINE = "newline"
    #: `max_tokens` were generated, or the context is full.
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One validated request. It is stored as JSON in the record's field `input`."""

    prompt: str
    #: With a seed.
    sampling: SamplingParams

    def to_json(self) -> str:
        """As one line of JSON, in which the sampling fields stand beside the prompt."""
        fields = {"prompt": self.prompt, **asdict(self.sampling)}
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Generation:
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        prompt = fields.pop("prompt")
        fields["stop"] = tuple(fields["stop"])
        return cls(prompt=prompt, sampling=SamplingParams(**fields))
