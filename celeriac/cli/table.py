"""Lays out a table for a terminal: no word is broken, and no line is longer than the terminal if that is possible."""

from __future__ import annotations

from collections.abc import Collection, Sequence

#: Between two columns, in cells.
_GAP = 2
#: A column that may be cut keeps this many cells.
_NARROWEST = 12


def lay_out(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, cut: str, hide: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The lines of a table with its head first, and the columns that are left out.

    `width`: of the terminal, in cells. If it is too small, the texts of the column `cut` are shortened, and columns of
    `hide` are left out, the first of them first. What is still too long is left to the terminal.
    """
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    flexible = columns.index(cut)
    needed = [min(cells, _NARROWEST) if index == flexible else cells for index, cells in enumerate(widths)]
    hidden: list[str] = []
    shown = list(range(len(columns)))
    for name in hide:
        if _total([needed[index] for index in shown]) <= width:
            break
        hidden.append(name)
        shown.remove(columns.index(name))
    spare = width - _total([needed[index] for index in shown])
    widths[flexible] = min(widths[flexible], needed[flexible] + max(0, spare))
    return [_line(row, shown, widths) for row in (columns, *rows)], hidden


def _total(widths: Collection[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _line(row: Sequence[str], shown: Sequence[int], widths: Sequence[int]) -> str:
    return (" " * _GAP).join(_fitted(row[index], widths[index]) for index in shown).rstrip()


def _fitted(text: str, cells: int) -> str:
    """The text in exactly this many cells; a longer one ends with an ellipsis."""
    from rich.cells import cell_len, set_cell_size

    return set_cell_size(text, cells) if cell_len(text) <= cells else f"{set_cell_size(text, cells - 1)}…"
