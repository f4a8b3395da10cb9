"""A job that a command submits, and cancels if it is interrupted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celeriac.cli.output import warn
from celeriac.errors import CeleriacError

if TYPE_CHECKING:
    from celeriac.client import InferenceClient, Job


class OwnJob:
    """The job of one request, which has no reader but this command."""

    def __init__(self, client: InferenceClient, request: Mapping[str, Any]) -> None:
        """`request`: the arguments of `client.submit`."""
        self._client = client
        self._request = request
        self._key = str(uuid.uuid4())
        self._job: Job | None = None

    def submit(self) -> Job:
        """Queue the job. Raises CeleriacError."""
        self._job = self._client.submit(idempotency_key=self._key, **self._request)
        return self._job

    def cancel(self) -> None:
        """Stop the job, also if its submission was interrupted. Warns if that fails."""
        try:
            self._client.cancel(self._submitted() if self._job is None else self._job)
        except CeleriacError as error:
            warn([f"The job may still run: {error}"])

    def _submitted(self) -> Job:
        """The job of a submission without a response. The server may have it: the key finds it, without retries."""
        from celeriac.client import InferenceClient

        with InferenceClient(self._client.base_url, retry_s=0.0) as client:
            return client.submit(idempotency_key=self._key, **self._request)
