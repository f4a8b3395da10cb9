"""The client's errors. The message of an ApiError is the server's own.

CeleriacError
├── ConfigurationError          an environment variable, such as HTTPS_PROXY, has a value that cannot be used
├── ServerUnreachableError      the connection failed or broke, or no response came in time
├── ApiError                    the server responded with an error
│   ├── InvalidRequestError     400, 413, 422: the request is wrong; sending it again does not help
│   ├── NotFoundError           404, 410: the job or checkpoint does not exist, or the job was deleted or has expired
│   ├── QueueFullError          429: too many jobs wait; try again later
│   ├── UnavailableError        502, 503: no worker, no Redis, or the server restarts; try again later
│   └── UnexpectedAnswerError   the response does not come from Celeriac: check the URL
└── JobError                    an error about one job, `error.job` (in `celeriac.client.job`)
    ├── WaitTimeoutError        the time to wait is over, and the job continues; also a TimeoutError
    └── JobFailedError          the job has ended without success: failed, cancelled or expired
"""

from __future__ import annotations

from celeriac.errors import CeleriacError


class ConfigurationError(CeleriacError):
    """An environment variable has a value that cannot be used. The message names the variable."""


class ServerUnreachableError(CeleriacError):
    """No response came from the client's URL."""


class ApiError(CeleriacError):
    """The server responded with an error. `str()` of it is the server's message."""

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
        #: The server's name for the error, such as `queue_full`; None on the guide's routes.
        self.code = code
        #: Seconds after which the server allows another request (`Retry-After`); None if it does not say.
        self.retry_after_s = retry_after_s
        #: False if the server says that repeating the request is useless (`X-Should-Retry: false`).
        self.may_retry = may_retry
        #: The job that the error is about; it may have been accepted in spite of the error.
        self.job_id = job_id
        #: The id of the request in the server's log.
        self.request_id = request_id


class InvalidRequestError(ApiError):
    """The request is wrong. Sending it again does not help."""


class NotFoundError(ApiError):
    """The job or checkpoint does not exist, or the job was deleted or has expired."""


class QueueFullError(ApiError):
    """Too many jobs wait."""


class UnavailableError(ApiError):
    """The server cannot serve the request now: no worker has loaded the checkpoint, Redis is away, or it restarts."""


class UnexpectedAnswerError(ApiError):
    """The response does not come from a Celeriac server."""
