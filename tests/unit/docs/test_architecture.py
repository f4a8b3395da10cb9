"""docs/architecture.md: its map has one line for every folder of code, and the functions that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.docs.pages import ARCHITECTURE, CODE_SUFFIXES, PACKAGES, ROOT, code_files

#: A line of the map: the folder, two spaces or more, and what it holds.
_MAP_LINE = re.compile(rf"((?:{'|'.join(PACKAGES)})/(?:[\w/]+/)?) {{2,}}\S.*")
#: A file of code, followed by the name of what to read in it.
_NAMED = re.compile(r"`((?:%s)/[\w/.]+\.\w+)`\s+`(\w+)`" % "|".join(PACKAGES))  # noqa: UP031


def mapped_folders(page: str) -> list[str]:
    """The folders of the map, in the order of their lines."""
    block = re.search(r"^```text\n(api/ .*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block is not None, "the page has no map: a block ```text whose first line is that of api/"
    folders = []
    for line in block[1].splitlines():
        match = _MAP_LINE.fullmatch(line)
        assert match is not None, f"a line of the map is `folder/`, two spaces or more, and a text, not: {line!r}"
        folders.append(match[1])
    return folders


def folders_of_code(root: Path) -> set[str]:
    """Every folder of the packages that holds source files."""
    return {f"{path.parent.relative_to(root).as_posix()}/" for path in code_files(root)}


def test_the_map_has_one_line_for_every_folder() -> None:
    mapped = mapped_folders(ARCHITECTURE.read_text("utf-8"))
    there = folders_of_code(ROOT)
    assert not there - {*mapped}, "add a line to the map of docs/architecture.md"
    assert not {*mapped} - there, "the map of docs/architecture.md has a line for a folder that is not there"
    assert len(mapped) == len({*mapped}), "a folder has two lines in the map of docs/architecture.md"


def test_a_new_folder_and_a_lost_one_are_noticed(tmp_path: Path) -> None:
    for name in ("api/routes/jobs.py", "tasks/lua/submit.lua", "worker/engine/native/kernels.c"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for name in ("api/routes/__pycache__/jobs.py", "worker/engine/native/built/kernels.c", "celeriac/notes/todo.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    there = folders_of_code(tmp_path)
    assert there == {"api/routes/", "tasks/lua/", "worker/engine/native/"}
    mapped = mapped_folders("```text\napi/  HTTP in\napi/routes/  one file a family\n```\n")
    assert there - {*mapped} == {"tasks/lua/", "worker/engine/native/"}
    assert {*mapped} - there == {"api/"}


def test_a_line_without_a_text_is_not_a_line_of_the_map() -> None:
    with pytest.raises(AssertionError, match="two spaces or more"):
        mapped_folders("```text\napi/  HTTP in\napi/routes/\n```\n")


def named_in_files() -> list[tuple[str, str]]:
    """Every pair of a file and a name in it that the page names together."""
    return sorted({*_NAMED.findall(ARCHITECTURE.read_text("utf-8"))})


def test_the_page_names_functions() -> None:
    assert len(named_in_files()) > 20


@pytest.mark.parametrize(("file", "name"), named_in_files())
def test_every_function_that_the_page_names_is_in_its_file(file: str, name: str) -> None:
    path = ROOT / file
    assert path.suffix in CODE_SUFFIXES
    assert re.search(rf"\b(?:def|class|function) {name}\b", path.read_text("utf-8")), f"{file} has no {name}"
