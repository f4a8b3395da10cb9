"""The base class of the package's errors. It imports nothing, so that every module may import it."""

from __future__ import annotations


class CeleriacError(Exception):
    """Base of the package's errors. The message says what is wrong and, if possible, what to do."""
