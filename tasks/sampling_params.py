"""The sampling fields, declared once for the API, the record, the engine and the command line.

To add a field, edit four places:

1. Here: type, default, bounds, description. The request bodies and the job object of the API, the record in Redis, the
   options of `celeriac generate`, `submit` and `run`, and the engine's requests then have it. (A type that no other
   field has must also be added to `api/schemas/sampling.py` and `celeriac/cli/options.py`.)
2. `celeriac/client/options.py`, which cannot import this package. A test compares the two.
3. `worker/engine/adjustment.py` if the field changes logits before the draw, `worker/engine/stop_criteria.py`
   if it ends texts, else `worker/engine/sampling/torch_sampler.py`.
4. For a field of the sampler, the compiled sampler too: `worker/engine/sampling/native_sampler.py` with its C side,
   `worker/engine/native/sampling.h`. Both declare the struct `SamplingRow`, with the fields in the same order.

Values that the engine cannot run are refused in `worker/engine/request_check.py`. For the tests, add the field to the
rules in plain Python (`bench/slow_sampling.py`) and to the random requests in `tests/unit/worker/engine/sampling`,
which compare all samplers. The documentation of the fields is in `docs/guide.md`, `docs/reference/http.md`,
`docs/reference/client.md` and `docs/reference/commands.md`.

The default of a new field must be None, False or (), and must change nothing: a record leaves such fields out, so that
processes of an older version can run jobs that do not use the new field. A job that uses it fails on an older worker
with the code `unsupported`. So update the workers before the API.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

#: Bounds of the original guide.
MAX_TOKENS_LIMIT = 2048
MAX_TEMPERATURE = 2.0
#: Most stop texts of one request, and the longest of them in characters.
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 64
#: Most `stop_token_ids` of one request.
MAX_STOP_TOKEN_IDS = 64
#: Most ids with a bias, and the largest bias.
MAX_BIASES = 1000
MAX_BIAS = 100.0
#: Largest presence and frequency penalty, and largest repetition penalty.
MAX_PENALTY = 2.0
MAX_REPETITION_PENALTY = 10.0
#: Most alternatives of a token with their log-probabilities.
MAX_LOGPROBS = 20
#: Largest token id that a request may name. Packed records hold ids in 32 bits with a sign.
MAX_TOKEN_ID = 2**31 - 1
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
    #: Limits of each number in a list, or of each value in a mapping.
    item_ge: float | None = None
    item_le: float | None = None

    def contain(self, value: Any) -> bool:
        """Whether a value of the field's type is within the bounds. None, an unset value, always is."""
        if isinstance(value, tuple):
            return (self.max_length is None or len(value) <= self.max_length) and all(map(self._contain_item, value))
        return value is None or not (
            (self.ge is not None and value < self.ge)
            or (self.gt is not None and value <= self.gt)
            or (self.le is not None and value > self.le)
            or (self.lt is not None and value >= self.lt)
        )

    def _contain_item(self, item: Any) -> bool:
        if isinstance(item, str):
            return self.max_item_length is None or 0 < len(item) <= self.max_item_length
        number = item
        if isinstance(item, tuple):
            token_id, number = item
            if not 0 <= token_id <= MAX_TOKEN_ID:
                return False
        return (self.item_ge is None or number >= self.item_ge) and (self.item_le is None or number <= self.item_le)


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
    min_p: float | None = _param(
        None,
        "Sample only from tokens with at least this share of the most likely token's probability. Unset: from all.",
        ge=0.0,
        le=1.0,
    )
    presence_penalty: float | None = _param(
        None,
        "Subtracted from the logit of each token that the answer contains already. Unset: 0.",
        ge=-MAX_PENALTY,
        le=MAX_PENALTY,
    )
    frequency_penalty: float | None = _param(
        None,
        "Subtracted from the logit of a token once for each time that the answer contains it already. Unset: 0.",
        ge=-MAX_PENALTY,
        le=MAX_PENALTY,
    )
    repetition_penalty: float | None = _param(
        None,
        "Divides the logit of each token that the prompt or the answer contains already; a negative logit is "
        "multiplied by it. Unset: 1.",
        gt=0.0,
        le=MAX_REPETITION_PENALTY,
    )
    logit_bias: tuple[tuple[int, float], ...] = _param(
        (),
        f"Added to the logits of these token ids. In effect, -{MAX_BIAS:.0f} bans a token and {MAX_BIAS:.0f} forces "
        f"it. At most {MAX_BIASES} ids.",
        max_length=MAX_BIASES,
        item_ge=-MAX_BIAS,
        item_le=MAX_BIAS,
    )
    stop_on_newline: bool = _param(False, "End the text after the first newline, which is kept.")
    stop: tuple[str, ...] = _param(
        (),
        f"End the text before the first of these texts. At most {MAX_STOPS}, of 1 to {MAX_STOP_CHARACTERS} characters.",
        max_length=MAX_STOPS,
        max_item_length=MAX_STOP_CHARACTERS,
    )
    stop_token_ids: tuple[int, ...] = _param(
        (),
        f"More token ids that end the text and are not part of it. At most {MAX_STOP_TOKEN_IDS}.",
        max_length=MAX_STOP_TOKEN_IDS,
        item_ge=0,
        item_le=MAX_TOKEN_ID,
    )
    min_tokens: int | None = _param(
        None,
        "Neither a stop token nor a stop text ends the text before it has this many tokens. Unset: 0.",
        ge=0,
        le=MAX_TOKENS_LIMIT,
    )
    ignore_eos: bool = _param(False, "Continue where the model would end the text.")
    seed: int | None = _param(
        None,
        "Seed of the random draws: the same request with the same seed gives the same text. Unset: a new seed.",
        ge=0,
        lt=1 << SEED_BITS,
    )
    logprobs: int | None = _param(
        None,
        "Return the log-probability of each generated token, and of this many most likely tokens in its place. "
        "Unset: none.",
        ge=0,
        le=MAX_LOGPROBS,
    )
    prompt_logprobs: int | None = _param(
        None,
        "The same for each token of the prompt but the first. Unset: none.",
        ge=0,
        le=MAX_LOGPROBS,
    )

    def with_seed(self) -> SamplingParams:
        """The same parameters with a seed: the given one, or else a random one."""
        # Imported here: the command line imports this module at each start, and `secrets` loads OpenSSL.
        import secrets

        return self if self.seed is not None else replace(self, seed=secrets.randbits(SEED_BITS))


#: The annotations of fields with several values.
STRINGS = "tuple[str, ...]"
IDS = "tuple[int, ...]"
#: Pairs of a token id and its bias, in the order of the ids. In JSON an object: the ids are the names.
BIASES = "tuple[tuple[int, float], ...]"
#: A token id as the name of a member of an object. Each id has one such name.
ID_PATTERN = "^(0|[1-9][0-9]{0,9})$"
_ID = re.compile(ID_PATTERN)


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
        if self.type == STRINGS and isinstance(value, list) and all(isinstance(one, str) for one in value):
            for text in value:
                text.encode()  # A lone surrogate raises UnicodeEncodeError, a ValueError.
            return tuple(value)
        if self.type == IDS and isinstance(value, list) and all(_is_int(one) for one in value):
            return tuple(value)
        if self.type == BIASES and isinstance(value, dict):
            return biases_of(value)
        if "bool" in kinds and isinstance(value, bool):
            return value
        if "int" in kinds and _is_int(value):
            return value
        if "float" in kinds and _is_number(value):
            return float(value)
        raise ValueError(f"{self.name} has another type")

    def json(self, value: Any) -> Any:
        """The field's value as JSON has it: the reverse of `checked`."""
        return {str(token_id): bias for token_id, bias in value} if self.type == BIASES else value


def biases_of(members: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    """The biases that a JSON object has, in the order of the ids. Raises ValueError if it is no object of biases."""
    if not all(_ID.fullmatch(name) and _is_number(bias) for name, bias in members.items()):
        raise ValueError("a bias is a number, and its name is a token id")
    return tuple(sorted((int(name), float(bias)) for name, bias in members.items()))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


#: All fields, in the order of the declaration.
SAMPLING_FIELDS = tuple(
    SamplingField(one.name, str(one.type), one.default, one.metadata["description"], one.metadata["bounds"])
    for one in fields(SamplingParams)
)
