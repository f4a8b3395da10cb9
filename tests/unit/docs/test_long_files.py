"""The list of the files of tests that run first."""

from __future__ import annotations

from tests.helpers.long_files import LONG_FILES, TESTS


def test_all_files_exist() -> None:
    assert [name for name in LONG_FILES if not (TESTS / name).is_file()] == []
