"""Idempotency keys of calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.http.request_headers import SubmitHeaders, parse_idempotency_key
from api.jobs.submission import ANONYMOUS, idempotency
from tasks.store.new_job import Idempotency

#: Members of a body that say how to answer, not what to generate. A request with the same key may change them, so that
#: a client whose stream broke off can fetch the whole answer.
_DELIVERY = ("stream", "stream_options")


def call_idempotency(sent: Mapping[str, Any], headers: SubmitHeaders, *, route: str) -> Idempotency | None:
    """The key of a request, with the fingerprint of its JSON body `sent`; None without the header. Raises ApiError."""
    asked = {name: value for name, value in sent.items() if name not in _DELIVERY}
    return idempotency(
        parse_idempotency_key(headers.key_lines),
        owner=ANONYMOUS,
        route=route,
        request={**asked, "deadline_s": headers.cancel_after_s},
    )
