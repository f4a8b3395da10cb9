"""Tables in terminals of several widths."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from celeriac.cli.table import lay_out

COLUMNS = ("ID", "STATUS", "TOKENS", "MODEL", "CREATED", "PROMPT")
ROWS = [
    ("job_01M8EEPHMJY6HAQM9M986NQS6F", "succeeded, length", "2/100", "step_002920", "2026-11-27 12:11:50", "12+3="),
    ("job_01M8EEPH9QGRPNG4D4PAWFGRGX", "queued, 12 ahead", "0/2048", "d4-sft", "2026-11-27 12:11:51", "漢字" * 20),
]
HIDE = ("CREATED", "MODEL", "TOKENS", "PROMPT")


@pytest.mark.parametrize("width", range(40, 201, 5))
def test_no_word_is_broken_and_no_line_is_too_long(width: int) -> None:
    lines, hidden = lay_out(COLUMNS, ROWS, width=width, cut="PROMPT", hide=HIDE)
    assert list(hidden) == list(HIDE[: len(hidden)])
    shown = [name for name in COLUMNS if name not in hidden]
    assert lines[0].split() == shown
    for line, row in zip(lines[1:], ROWS, strict=True):
        assert all(row[COLUMNS.index(name)] in line for name in shown if name != "PROMPT")
        # The id and the status alone need 49 cells.
        assert cell_len(line) <= max(width, 49)
    if "PROMPT" in shown:
        assert ("…" in lines[2]) == (ROWS[1][-1] not in lines[2])


def test_a_wide_terminal_shows_everything() -> None:
    lines, hidden = lay_out(COLUMNS, ROWS, width=200, cut="PROMPT", hide=HIDE)
    assert hidden == []
    assert lines[2].split("  ")[-1] == "漢字" * 20


def test_a_table_without_rows_is_its_head() -> None:
    assert lay_out(("A", "B"), [], width=80, cut="B", hide=()) == (["A  B"], [])
