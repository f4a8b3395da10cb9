"""How to continue a prompt: the sampling fields, declared once for the API, the record, the engine and the command line.

To add a field, touch four places:

1. here: type, default, bounds, description. The request bodies and the job object of the API, the record in Redis, the
   options of `celeriac generate`, `submit` and `run`, and the engine's requests have it then;
2. `celeriac/client/options.py`, which may not import this package (a test compares the two);
3. `worker/engine/sampling/torch_sampler.py`, or `worker/engine/stop_criteria.py` if it ends texts;
4. for a field of the sampler its compiled twin: `worker/engine/sampling/native_sampler.py` with `native/sampling.h`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

#: The guide's bounds.
MAX_TOKENS_LIMIT = 2048
MAX_TEMPERATURE = 2.0
#: Stop texts of one request, and the longest of them in characters.
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 64
#: Seeds are drawn from 53 bits, so that they survive JSON numbers in every language.
SEED_BITS = 53


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a field's value, under the names that pydantic gives them; None: no limit."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    #: Most items of a list, and the longest item in characters.
    max_length: int | None = None
    max_item_length: int | None = None


def _param(default: Any, description: str, **bounds: float) -> Any:
    return field(default=default, metadata={"description": description, "bounds": Bounds(**bounds)})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """The sampling fields of one request. The values are not checked here: the API and the command line do that."""

    max_tokens: int = _param(
        100, "Most tokens to generate; cut to what the context has room for.", ge=1, le=MAX_TOKENS_LIMIT
    )
    temperature: float = _param(0.8, "0: always the likeliest token. Higher: more varied.", ge=0.0, le=MAX_TEMPERATURE)
    top_k: int | None = _param(
        None, "Sample from the k likeliest tokens only; at most the vocabulary size. Without it: from all.", ge=1
    )
    top_p: float | None = _param(
        None, "Sample from the likeliest tokens that together have this probability.", gt=0.0, le=1.0
    )
    stop_on_newline: bool = _param(False, "End after the first newline, which is kept.")
    stop: tuple[str, ...] = _param(
        (),
        "Texts that end the answer; it is cut in front of the first of them.",
        max_length=MAX_STOPS,
        max_item_length=MAX_STOP_CHARACTERS,
    )
    ignore_eos: bool = _param(False, "Go on where the model would end the text.")
    seed: int | None = _param(
        None, "Repeats the draws of another run. Without it a new one is drawn.", ge=0, lt=1 << SEED_BITS
    )

    def with_seed(self) -> SamplingParams:
        """The same with a seed: the given one, or else one that is drawn now."""
        # Imported here: the command line imports this module at each start, and `secrets` loads OpenSSL.
        import secrets

        return self if self.seed is not None else replace(self, seed=secrets.randbits(SEED_BITS))


@dataclass(frozen=True, slots=True)
class SamplingField:
    """One field of SamplingParams, for code that is made from its declaration."""

    name: str
    #: The annotation, such as `int | None`, as text.
    type: str
    default: Any
    description: str
    bounds: Bounds


#: Every field, in the order of the declaration.
SAMPLING_FIELDS = tuple(
    SamplingField(one.name, str(one.type), one.default, one.metadata["description"], one.metadata["bounds"])
    for one in fields(SamplingParams)
)
