"""The sampling fields, declared once for the API, the record, the engine and the command line.

To add a field, edit four places:

1. Here: type, default, bounds, description. The request bodies and the job object of the API, the record in Redis, the
   options of `celeriac generate`, `submit` and `run`, and the engine's requests then have it. (A type that no other
   field has must also be added to `api/schemas/sampling.py` and `celeriac/cli/options.py`.)
2. `celeriac/client/options.py`, which cannot import this package. A test compares the two.
3. `worker/engine/sampling/torch_sampler.py`, or `worker/engine/stop_criteria.py` if the field ends texts.
4. For a field of the sampler, the compiled sampler too: `worker/engine/sampling/native_sampler.py` with its C side,
   `worker/engine/native/sampling.h`. Both declare the struct `SamplingRow`, with the fields in the same order.

Values that the engine cannot run are refused in `worker/engine/request_check.py`. For the tests, add the field to the
rules in plain Python (`bench/slow_sampling.py`) and to the random requests in `tests/unit/worker/engine/sampling`,
which compare all samplers. The documentation of the fields is in `docs/guide.md`, `docs/reference/http.md`,
`docs/reference/client.md` and `docs/reference/commands.md`.

The default of a new field must be None or False, and must change nothing: a record leaves such fields out, so that
processes of an older version can run jobs that do not use the new field. A job that uses it fails on an older worker
with the code `unsupported`. So update the workers before the API.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

#: Bounds of the original guide.
MAX_TOKENS_LIMIT = 2048
MAX_TEMPERATURE = 2.0
#: Most stop texts of one request, and the longest of them in characters.
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 64
#: Seeds have 53 bits, so that a JSON number holds them exactly in every language.
SEED_BITS = 53


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a field's value, with the names that pydantic uses; None for no limit."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    #: Largest number of items in a list.
    max_length: int | None = None
    #: Largest length of an item in characters.
    max_item_length: int | None = None

    def contain(self, value: Any) -> bool:
        """Whether a value of the field's type is within the bounds. None, an unset value, always is."""
        if isinstance(value, tuple):
            short = self.max_item_length is None or all(0 < len(item) <= self.max_item_length for item in value)
            return short and (self.max_length is None or len(value) <= self.max_length)
        return value is None or not (
            (self.ge is not None and value < self.ge)
            or (self.gt is not None and value <= self.gt)
            or (self.le is not None and value > self.le)
            or (self.lt is not None and value >= self.lt)
        )


def _param(default: Any, description: str, **bounds: float) -> Any:
    return field(default=default, metadata={"description": description, "bounds": Bounds(**bounds)})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The sampling fields of one request. The API and the command line check the values, not this class."""

    max_tokens: int = _param(
        100,
        "Most tokens to generate; reduced to what fits into the context.",
        ge=1,
        le=MAX_TOKENS_LIMIT,
    )
    temperature: float = _param(
        0.8, "0: always the most likely token. Higher values: more varied text.", ge=0.0, le=MAX_TEMPERATURE
    )
    top_k: int | None = _param(
        None, "Sample only from the k most likely tokens; at most the vocabulary size. Unset: from all.", ge=1
    )
    top_p: float | None = _param(
        None,
        "Sample only from the most likely tokens that together have this probability. Unset: from all.",
        gt=0.0,
        le=1.0,
    )
    stop_on_newline: bool = _param(False, "End the text after the first newline, which is kept.")
    stop: tuple[str, ...] = _param(
        (),
        f"End the text before the first of these texts. At most {MAX_STOPS}, of 1 to {MAX_STOP_CHARACTERS} characters.",
        max_length=MAX_STOPS,
        max_item_length=MAX_STOP_CHARACTERS,
    )
    ignore_eos: bool = _param(False, "Continue where the model would end the text.")
    seed: int | None = _param(
        None,
        "Seed of the random draws: the same request with the same seed gives the same text. Unset: a new seed.",
        ge=0,
        lt=1 << SEED_BITS,
    )

    def with_seed(self) -> SamplingParams:
        """The same parameters with a seed: the given one, or else a random one."""
        # Imported here: the command line imports this module at each start, and `secrets` loads OpenSSL.
        import secrets

        return self if self.seed is not None else replace(self, seed=secrets.randbits(SEED_BITS))


@dataclass(frozen=True, slots=True)
class SamplingField:
    """One field of SamplingParams, for code that is generated from the declaration."""

    name: str
    #: The annotation as text, such as `int | None`.
    type: str
    default: Any
    description: str
    bounds: Bounds

    def checked(self, value: Any) -> Any:
        """A JSON value as the field has it. Raises ValueError if it has another type."""
        kinds = self.type.split(" | ")
        if value is None and "None" in kinds:
            return None
        if self.type == "tuple[str, ...]" and isinstance(value, list) and all(isinstance(one, str) for one in value):
            for text in value:
                text.encode()  # A lone surrogate raises UnicodeEncodeError, a ValueError.
            return tuple(value)
        if "bool" in kinds and isinstance(value, bool):
            return value
        if "int" in kinds and isinstance(value, int) and not isinstance(value, bool):
            return value
        if "float" in kinds and isinstance(value, (int, float)) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
        raise ValueError(f"{self.name} has another type")


#: All fields, in the order of the declaration.
SAMPLING_FIELDS = tuple(
    SamplingField(one.name, str(one.type), one.default, one.metadata["description"], one.metadata["bounds"])
    for one in fields(SamplingParams)
)
