"""The base of every error that this package raises for people. Free of imports, so that anything may use it."""

from __future__ import annotations


class CeleriacError(Exception):
    """Base of the package's errors. The message says what is wrong and, where it can, what to do."""
