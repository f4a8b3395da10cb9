"""A job to submit, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.generation import Generation
from tasks.job import Group, TimeLimits

#: Memory in bytes that a job needs beyond its record of the time of submission: for its log, its result, its message
#: and its entries in the listings; and for each token in addition. Measured: 4.7 KB for the shortest log; 17 to 32
#: bytes a token for longer ones, and the text.
RESERVE_PER_JOB = 8192
RESERVE_PER_TOKEN = 40


@dataclass(frozen=True, slots=True)
class Idempotency:
    """Identifies a request that may be sent more than once. Neither part contains a space."""

    #: Hash of the owner, the route and the caller's key.
    key_hash: str
    #: Hash of the validated request.
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A validated request for a job."""

    #: From `tasks.job_id.new_job_id`.
    id: str
    owner: str
    checkpoint: str
    #: Digest of the card that the request was validated against.
    digest: str
    generation: Generation
    #: Its place among the jobs of the same call; None if it is the only one.
    group: Group | None = None
    #: Longest sequence of the checkpoint in tokens, a bound of what the log may hold; None if it is not known.
    context: int | None = None
    #: 0 (served first) to 9.
    priority: int = 5
    metadata: Mapping[str, str] = field(default_factory=dict)
    limits: TimeLimits = field(default_factory=TimeLimits)
    #: Largest number of jobs that may be ahead of this one; None for no limit.
    max_position: int | None = None
    #: Id of the job that this one repeats.
    retry_of: str | None = None
    #: Predicted duration from submission to end, in seconds; None if there is no prediction. The real duration is
    #: compared with it.
    predicted_s: float | None = None
    idempotency: Idempotency | None = None
    #: How long the finished job is kept, in seconds; None for the setting `result_ttl_s`.
    result_ttl_s: float | None = None
    #: Channel that receives the job's id when the job ends; None if no caller waits for the end.
    reply_to: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def reserve_bytes(self) -> int:
        """Memory that the job may need in Redis until its end, beyond its record of now."""
        tokens = RESERVE_PER_TOKEN * self.generation.sampling.max_tokens
        return RESERVE_PER_JOB + tokens + self.generation.most_logprob_bytes(self.context)


@dataclass(frozen=True, slots=True)
class Submitted:
    """An accepted job."""

    job_id: str
    #: Whether an earlier request with the same key created the job. Its record may have expired since.
    replayed: bool
