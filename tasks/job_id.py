"""Ids of jobs: `job_` and a ULID, so that ids sort by the time of their creation."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_DIGITS = 26
_BITS_PER_DIGIT = 5

#: Pattern of job ids, for `fullmatch`.
JOB_ID = re.compile(rf"job_[0-7][{_ALPHABET}]{{{_DIGITS - 1}}}")


def new_job_id() -> str:
    """A new id: 48 bits of time in ms and 80 random bits, in Crockford's base 32."""
    return _id_of(time.time_ns() // 1_000_000 << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS))


def group_ids(first: str, size: int) -> tuple[str, ...]:
    """The ids of a group of `size` jobs whose first job has the id `first`: consecutive numbers.

    So the id of the first job and the size of the group name all of its jobs.
    """
    number = 0
    for digit in first.removeprefix("job_"):
        number = number << _BITS_PER_DIGIT | _ALPHABET.index(digit)
    return tuple(_id_of(number + index) for index in range(size))


def _id_of(number: int) -> str:
    shifts = range((_DIGITS - 1) * _BITS_PER_DIGIT, -1, -_BITS_PER_DIGIT)
    return "job_" + "".join(_ALPHABET[number >> shift & 31] for shift in shifts)
