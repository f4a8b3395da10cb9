"""The `Cancel-After` request header: how long the whole job may take. The same as `deadline_s` of a body."""

from __future__ import annotations

import re

from api.http.problems import invalid
from api.schemas.generation import MAX_TIME_LIMIT_S

#: `90`, `90s`, `1m30s`, `1h`; a number alone is in seconds.
_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9}(?:\.\d{1,9})?)s)?|(\d{1,9}(?:\.\d{1,9})?)")


def parse_cancel_after(value: str) -> float:
    """The header's value in seconds. Raises ApiError."""
    text = value.strip().lower()
    match = _DURATION.fullmatch(text) if text.isascii() else None
    hours, minutes, seconds, bare = match.groups(default="0") if match else ("0",) * 4
    total_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds) + float(bare)
    if not 0 < total_s <= MAX_TIME_LIMIT_S:
        raise invalid(
            ("header", "cancel-after"),
            f"Cancel-After is a duration such as 30s, 1m30s or 1h, above 0 and at most {MAX_TIME_LIMIT_S} s.",
            "cancel_after",
            given=value,
        )
    return total_s


def sooner(*limits_s: float | None) -> float | None:
    """The shortest of several limits; None where there is none."""
    return min((limit for limit in limits_s if limit is not None), default=None)
