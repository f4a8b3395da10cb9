"""A request to the model, and the reasons why a text ends."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from tasks.sampling_params import SamplingParams


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

    def to_json(self) -> str:
        """The request as one line of JSON, an object of the prompt and the sampling fields."""
        fields = {"prompt": self.prompt, **asdict(self.sampling)}
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Generation:
        """The request that `to_json` encoded."""
        fields: dict[str, Any] = json.loads(text)
        prompt = fields.pop("prompt")
        fields["stop"] = tuple(fields["stop"])
        return cls(prompt=prompt, sampling=SamplingParams(**fields))
