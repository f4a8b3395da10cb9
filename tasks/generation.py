"""What a caller asks of the model: the prompt and how to continue it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

#: The guide's bounds.
MAX_TOKENS_LIMIT = 2048
MAX_TEMPERATURE = 2.0
#: Stop strings of one request, and the longest of them in characters.
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 64
#: Seeds are drawn from 53 bits, so that they survive JSON numbers in every language.
SEED_BITS = 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One validated request. It is stored as JSON in the record's field `input`."""

    prompt: str
    max_tokens: int
    temperature: float
    seed: int
    top_k: int | None = None
    top_p: float | None = None
    stop_on_newline: bool = False
    #: Texts that end the answer; the answer is cut in front of the first of them.
    stop: tuple[str, ...] = ()
    #: Go on where the model would end the text (its stop token is then never sampled).
    ignore_eos: bool = False

    def to_json(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Generation:
        """What `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["stop"] = tuple(fields["stop"])
        return cls(**fields)
