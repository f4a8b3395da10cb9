"""A job as the server describes it, and the errors that carry one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from celeriac.client.guide import GeneratedText
from celeriac.client.logprobs import TokenLogprobs
from celeriac.errors import CeleriacError


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed."""

    #: A code such as `worker_lost`; docs/reference/http.md lists them.
    code: str
    message: str
    #: Whether the same job may succeed if it is submitted again.
    retryable: bool


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One use of the calculator."""

    #: The expression, as the model wrote it.
    input: str
    #: Its result, which the model went on with; empty if there was none.
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Durations of a job in seconds; each is None until it is known."""

    #: From submission to the first start.
    queue_s: float | None
    #: How long the load of the checkpoint took, if the job waited for it; else 0.
    load_s: float | None
    #: From the start to the first token.
    ttft_s: float | None
    #: From the first token to the end.
    decode_s: float | None
    #: Tokens per second after the first token.
    tokens_per_s: float | None
    #: From submission to the end.
    total_s: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimated time until something happens, in seconds: 50% of all cases need at most `p50`, 90% at most `p90`."""

    p50: float
    p90: float

    @classmethod
    def of(cls, raw: Mapping[str, Any] | None) -> Estimate | None:
        """Parse the API's `{"p50": ..., "p90": ...}`; None if there is no estimate."""
        return None if raw is None else cls(p50=raw["p50"], p90=raw["p90"])


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Job:
    """A snapshot of a job at the time of the server's response. `client.job(id)` reads it again."""

    id: str
    #: `queued`, `running`, `succeeded`, `failed`, `cancelled` or `expired`.
    status: str
    #: Name of the checkpoint.
    model: str
    #: Empty if the request gave messages or token ids.
    prompt: str
    #: The conversation that the job answers, with `role` and `content` of each message; None without one.
    messages: tuple[Mapping[str, str], ...] | None
    #: The token ids that the job continues; None unless the request gave them.
    prompt_token_ids: tuple[int, ...] | None
    #: The continuation so far; None in lists while the job runs.
    text: str | None
    #: Uses of the calculator, which are no part of the text. Empty until the job has ended.
    tool_calls: tuple[ToolCall, ...]
    #: One for each token so far, and perhaps one for the token that ended the text.
    #: None unless requested, and in lists.
    logprobs: tuple[TokenLogprobs, ...] | None
    #: One for each token of the prompt after the first; None unless requested, and in lists.
    prompt_logprobs: tuple[TokenLogprobs, ...] | None
    #: Number of tokens in the continuation so far.
    tokens: int
    #: Most tokens that the continuation may have.
    max_tokens: int
    #: `stop`, `newline`, `length`, `cancelled`, `deadline` or `error`; None until the job has ended.
    finish_reason: str | None
    #: Number of jobs ahead of this one in the queue (0: it is next); None unless the job is queued.
    position: int | None
    #: Estimated seconds until the job starts; None unless it is queued, or if the server has no estimate.
    eta_start_s: float | None
    #: Estimated seconds until the job ends; None if it has ended, or if the server has no estimate.
    eta_finish_s: Estimate | None
    #: 0 is served first, 9 last.
    priority: int
    #: Seed of the random draws: the same request with this seed gives the same text.
    seed: int | None
    error: Failure | None
    #: Remarks for the caller, such as characters that were left out of the prompt.
    warnings: tuple[str, ...]
    metadata: Mapping[str, str]
    #: Name of the worker that runs or ran the job.
    worker: str | None
    #: How many times a worker has claimed the job.
    attempt: int
    #: How many times the job lost its worker or its engine.
    losses: int
    #: Id of the job that this one repeats, or None.
    retry_of: str | None
    #: Grows with every change of the job.
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    #: When the job is stopped if it has not ended; None: never.
    deadline_at: datetime | None
    #: When the server deletes the finished job.
    expires_at: datetime | None
    timings: Timings
    #: The JSON object that the server sent, including what has no field here.
    raw: Mapping[str, Any] = field(compare=False)

    def __repr__(self) -> str:
        """The id and the state, without the texts, which may be long."""
        return f"<Job {self.id} {self.status}, {self.tokens} of {self.max_tokens} tokens>"

    @property
    def done(self) -> bool:
        """Whether the job has ended, with or without success."""
        return self.status not in ("queued", "running")

    @property
    def generated_text(self) -> str | None:
        """The prompt and the continuation so far."""
        return None if self.text is None else self.prompt + self.text

    def result(self) -> GeneratedText:
        """The result as the guide's dictionary. Raises JobFailedError unless the job has succeeded."""
        if self.status != "succeeded" or self.text is None:
            raise JobFailedError(self._not_succeeded(), self)
        return GeneratedText(
            prompt=self.prompt,
            generated_text=self.prompt + self.text,
            tokens_generated=self.tokens,
            model=self.model,
        )

    def _not_succeeded(self) -> str:
        if self.error is not None:
            return f"{self.id} failed: {self.error.message} ({self.error.code})"
        return f"{self.id} is {self.status}" + ("; wait for it first" if not self.done else "")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Job:
        """Parse the API's job object. Raises KeyError, TypeError or ValueError if it is something else.

        Fields that servers older than this client do not send become None.
        """
        input_, queue, output, timings, failure = (
            raw[name] for name in ("input", "queue", "output", "timings", "error")
        )
        return cls(
            id=raw["id"],
            status=raw["status"],
            model=raw["model"],
            prompt=input_["prompt"],
            messages=_tuple(input_.get("messages")),
            prompt_token_ids=_tuple(input_.get("prompt_token_ids")),
            text=output["completion"],
            tool_calls=tuple(ToolCall(call["input"], call["output"]) for call in output.get("tool_calls", ())),
            logprobs=TokenLogprobs.of_all(output.get("logprobs")),
            prompt_logprobs=TokenLogprobs.of_all(output.get("prompt_logprobs")),
            tokens=raw["progress"]["tokens_generated"],
            max_tokens=raw["progress"]["max_tokens"],
            finish_reason=output["finish_reason"],
            position=queue["position"],
            eta_start_s=queue.get("eta_start_s"),
            eta_finish_s=Estimate.of(queue.get("eta_finish_s")),
            priority=queue["priority"],
            seed=input_["seed"],
            error=None if failure is None else Failure(failure["code"], failure["message"], failure["retryable"]),
            warnings=tuple(raw["warnings"]),
            metadata=raw["metadata"],
            worker=raw["worker"],
            attempt=raw["attempt"],
            losses=raw["losses"],
            retry_of=raw.get("retry_of"),
            version=raw["version"],
            created_at=datetime.fromisoformat(raw["created_at"]),
            started_at=_time(raw["started_at"]),
            finished_at=_time(raw["finished_at"]),
            deadline_at=_time(raw.get("deadline_at")),
            expires_at=_time(raw["expires_at"]),
            timings=Timings(
                queue_s=timings["queue_s"],
                load_s=timings.get("load_s"),
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
    """The id of a job; an id is returned unchanged."""
    return job.id if isinstance(job, Job) else job


def _tuple(items: Iterable[Any] | None) -> tuple[Any, ...] | None:
    return None if items is None else tuple(items)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
