"""What can go wrong for a client. Every message is the server's own where it sent one.

CeleriacError
├── ServerUnreachableError      nobody answered: refused, unknown host, connection lost, no answer in time
├── ApiError                    the server answered with an error
│   ├── InvalidRequestError     400, 413, 422: the request is wrong, and would be wrong again
│   ├── NotFoundError           404, 410: no such job or checkpoint, or its time is over
│   ├── QueueFullError          429: too many jobs wait; later it may work
│   ├── UnavailableError        502, 503: no worker, no Redis, or the server restarts; later it may work
│   └── UnexpectedAnswerError   this is no answer of Celeriac: is it the right URL?
├── WaitTimeoutError            the time that you gave is over; the job goes on. It is a TimeoutError, too
└── JobFailedError              the job is over without success: failed, cancelled or expired
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriac.errors import CeleriacError

if TYPE_CHECKING:
    from celeriac.client.job import Job


class ServerUnreachableError(CeleriacError):
    """Nobody answered at the client's URL."""


class ApiError(CeleriacError):
    """The server answered with an error. `str()` of it is the server's message."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str | None = None,
        retry_after_s: float | None = None,
        may_retry: bool = True,
        job_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        #: HTTP status.
        self.status = status
        #: The server's name for what is wrong, such as `queue_full`; None on the guide's routes.
        self.code = code
        #: When the server wants to be asked again.
        self.retry_after_s = retry_after_s
        #: False where the server forbade to repeat the request.
        self.may_retry = may_retry
        #: The job that was accepted nevertheless, or that the error is about.
        self.job_id = job_id
        #: The request's name in the server's log.
        self.request_id = request_id


class InvalidRequestError(ApiError):
    """The request is wrong, and would be wrong again."""


class NotFoundError(ApiError):
    """There is no such job or checkpoint, or its time is over."""


class QueueFullError(ApiError):
    """Too many jobs wait."""


class UnavailableError(ApiError):
    """The server cannot do it now: no worker has loaded the checkpoint, Redis is away, or it restarts."""


class UnexpectedAnswerError(ApiError):
    """What answered does not speak as Celeriac does."""


class JobError(CeleriacError):
    """Base of errors about one job."""

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message, job)
        #: The job as it was read last.
        self.job = job

    def __str__(self) -> str:
        return str(self.args[0])


class WaitTimeoutError(JobError, TimeoutError):
    """The job is not over in the given time. It goes on: `client.wait(error.job)` waits further."""


class JobFailedError(JobError):
    """The job is over without success; `error.job.status` says how, `error.job.text` has what was generated."""
