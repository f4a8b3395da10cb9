"""Errors of the tokenizer libraries, which are written in Rust and called through PyO3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Longest part of a library's message that ours contains, in characters.
_SHOWN = 200


class LibraryError(Exception):
    """The library failed, or panicked. The message is the library's own."""


@contextmanager
def library_errors() -> Iterator[None]:
    """Raise LibraryError for every failure of a library that is called inside the `with` block, but MemoryError.

    `tokenizers` raises a bare Exception for everything. A panic, which is a failed assertion in Rust, raises PyO3's
    PanicException: a BaseException, so that no `except Exception` sees it, and of a class that cannot be imported.
    """
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        raise LibraryError(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...") from error
