"""A job as the server describes it, and the errors that carry one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from celeriac.client.guide import GeneratedText
from celeriac.errors import CeleriacError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed."""

    #: Such as `worker_lost`; docs/reference/http.md has the list.
    code: str
    message: str
    #: Whether the same job may succeed another time.
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Durations in seconds; None until they are known."""

    #: From submission to the first start.
    queue_s: float | None
    #: From the start to the first token.
    ttft_s: float | None
    #: From the first token to the end.
    decode_s: float | None
    tokens_per_s: float | None
    #: From submission to the end.
    total_s: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """When something will be, in seconds: in half of all cases by p50, in nine of ten by p90."""

    p50: float
    p90: float

    @classmethod
    def of(cls, raw: Mapping[str, Any] | None) -> Estimate | None:
        """The API's `{"p50": ..., "p90": ...}`; None where it has no estimate."""
        return None if raw is None else cls(p50=raw["p50"], p90=raw["p90"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it was when the server answered. Read it again with `client.job(id)`."""

    id: str
    #: `queued`, `running`, `succeeded`, `failed`, `cancelled` or `expired`.
    status: str
    #: The checkpoint.
    model: str
    prompt: str
    #: The continuation so far; None in lists while the job runs.
    text: str | None
    #: Tokens of the continuation so far, and how many they may become.
    tokens: int
    max_tokens: int
    #: `stop`, `newline`, `length`, `cancelled`, `deadline` or `error`; None until the job is over.
    finish_reason: str | None
    #: Jobs ahead of this one (0: next); None unless queued.
    position: int | None
    #: Seconds until it is started; None unless queued, or where the server cannot tell.
    eta_start_s: float | None
    #: Seconds until it is over; None when it is, or where the server cannot tell.
    eta_finish_s: Estimate | None
    #: 0 is served first, 9 last.
    priority: int
    #: With it, the same request gives the same text again.
    seed: int | None
    error: Failure | None
    #: What its sender should know, such as characters that were left out of the prompt.
    warnings: tuple[str, ...]
    metadata: Mapping[str, str]
    worker: str | None
    #: How many times a worker has taken it up.
    attempt: int
    #: How many workers were lost with it.
    losses: int
    #: The job that this one repeats; None: none.
    retry_of: str | None
    #: Rises at every change.
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    #: When it is stopped if it is not over; None: never.
    deadline_at: datetime | None
    #: When the finished job is forgotten.
    expires_at: datetime | None
    timings: Timings
    #: The job object as the server sent it, with all that has no field here.
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def done(self) -> bool:
        """Whether the job is over, however it ended."""
        return self.status not in ("queued", "running")

    @property
    def generated_text(self) -> str | None:
        """The prompt and the continuation so far."""
        return None if self.text is None else self.prompt + self.text

    def result(self) -> GeneratedText:
        """The guide's dictionary. Raises JobFailedError unless the job has succeeded."""
        if self.status != "succeeded" or self.text is None:
            raise JobFailedError(self._why(), self)
        return GeneratedText(
            prompt=self.prompt,
            generated_text=self.prompt + self.text,
            tokens_generated=self.tokens,
            model=self.model,
        )

    def _why(self) -> str:
        if self.error is not None:
            return f"{self.id} failed: {self.error.message} ({self.error.code})"
        return f"{self.id} is {self.status}" + ("; wait for it first" if not self.done else "")

    @classmethod
    def from_answer(cls, raw: Mapping[str, Any]) -> Job:
        """The job object of the API. KeyError, TypeError or ValueError where it is none.

        What servers older than this client do not send is read as None.
        """
        asked, queue, output, timings, failure = (
            raw[name] for name in ("input", "queue", "output", "timings", "error")
        )
        return cls(
            id=raw["id"],
            status=raw["status"],
            model=raw["model"],
            prompt=asked["prompt"],
            text=output["completion"],
            tokens=raw["progress"]["tokens_generated"],
            max_tokens=raw["progress"]["max_tokens"],
            finish_reason=output["finish_reason"],
            position=queue["position"],
            eta_start_s=queue.get("eta_start_s"),
            eta_finish_s=Estimate.of(queue.get("eta_finish_s")),
            priority=queue["priority"],
            seed=asked["seed"],
            error=None if failure is None else Failure(failure["code"], failure["message"], failure["retryable"]),
            warnings=tuple(raw["warnings"]),
            metadata=raw["metadata"],
            worker=raw["worker"],
            attempt=raw["attempt"],
            losses=raw["losses"],
            retry_of=raw.get("retry_of"),
            version=raw["version"],
            created_at=datetime.fromisoformat(raw["created_at"]),
            started_at=_moment(raw["started_at"]),
            finished_at=_moment(raw["finished_at"]),
            deadline_at=_moment(raw.get("deadline_at")),
            expires_at=_moment(raw["expires_at"]),
            timings=Timings(
                queue_s=timings["queue_s"],
                ttft_s=timings["ttft_s"],
                decode_s=timings["decode_s"],
                tokens_per_s=timings["tokens_per_s"],
                total_s=timings["total_s"],
            ),
            raw=raw,
        )


class JobError(CeleriacError):
    """Base of the errors about one job."""

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message, job)
        #: The job as the client read it last.
        self.job = job

    def __str__(self) -> str:
        return str(self.args[0])


class WaitTimeoutError(JobError, TimeoutError):
    """The time to wait is over. The job continues: `client.wait(error.job)` waits for it again."""


class JobFailedError(JobError):
    """The job has ended without success. `error.job.status` says how, `error.job.text` is the text up to then."""


def id_of(job: str | Job) -> str:
    """Of a job, or an id itself."""
    return job.id if isinstance(job, Job) else job


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
