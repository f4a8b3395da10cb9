"""Names of jobs: `job_` and a ULID, so that they sort by the time at which they were made."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_DIGITS = 26
_BITS_PER_DIGIT = 5

#: Matches (with `fullmatch`) every id that `new_job_id` makes.
JOB_ID = re.compile(rf"job_[0-7][{_ALPHABET}]{{{_DIGITS - 1}}}")


def new_job_id() -> str:
    """48 bits of time in ms and 80 random ones, in Crockford's base 32."""
    number = time.time_ns() // 1_000_000 << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    shifts = range((_DIGITS - 1) * _BITS_PER_DIGIT, -1, -_BITS_PER_DIGIT)
    return "job_" + "".join(_ALPHABET[number >> shift & 31] for shift in shifts)
