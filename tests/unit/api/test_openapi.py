"""The OpenAPI document, compared with the events and with the reference page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from api.schemas.events import EVENT_DATA, EventName
from tests.helpers.openapi_document import check_event, document

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
PAGE = (REFERENCE / "http.md").read_text("utf-8")
OPENAI_PAGE = (REFERENCE / "openai.md").read_text("utf-8")
#: Events that an `EventSource` makes itself.
EVENT_SOURCE_EVENTS = {"open", "message", "error"}
#: Pages of the document itself, which it does not list.
OWN_PAGES = {("GET", "/docs"), ("GET", "/redoc"), ("GET", "/openapi.json")}


def operations() -> set[tuple[str, str]]:
    """Every operation of the document, with `{id}` for the id of a job or a model as the pages write it."""
    return {
        (method.upper(), re.sub(r"\{\w+\}", "{id}", path))
        for path, methods in document()["paths"].items()
        for method in methods
    }


def table_of_routes(page: str) -> set[tuple[str, str]]:
    """The operations in the first column of the page's first table."""
    table = re.search(r"^\| route \|.*?\n\n", page, re.MULTILINE | re.DOTALL)
    assert table is not None
    found: set[tuple[str, str]] = set()
    for row in table[0].strip().splitlines()[2:]:
        method = ""
        # A row may name several paths: `GET /health`, `/info`, `/`.
        for code in re.findall(r"`([^`]+)`", row.split("|")[1]):
            first, _, path = code.rpartition(" ")
            method = first or method
            found.add((method, path))
    return found


def test_the_pages_list_exactly_the_routes() -> None:
    assert table_of_routes(PAGE) | table_of_routes(OPENAI_PAGE) == operations() | OWN_PAGES
    assert not table_of_routes(PAGE) & table_of_routes(OPENAI_PAGE)


def test_a_route_that_the_page_lacks_is_noticed() -> None:
    page = "| route | what |\n|---|---|\n| [`GET /a`, `/b`](#a) | x |\n| `POST /a` | `GET /c` |\n\n| `GET /d` | |\n"
    assert table_of_routes(page) == {("GET", "/a"), ("GET", "/b"), ("POST", "/a")}


@pytest.mark.parametrize(("method", "path"), sorted(operations()))
def test_every_route_has_a_heading(method: str, path: str) -> None:
    headings = re.findall(r"^#+ (.*)$", PAGE + OPENAI_PAGE, re.MULTILINE)
    assert any(f"{method} {path}" in re.split(r", ", heading) for heading in headings)


def test_every_event_is_in_the_table_of_the_page() -> None:
    table = re.search(r"^\| event \|.*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert table is not None
    assert re.findall(r"^\| `(\w+)` ", table[0], re.MULTILINE) == [name.value for name in EventName]


def test_no_event_has_a_name_of_event_source() -> None:
    assert not EVENT_SOURCE_EVENTS & {name.value for name in EventName}
    assert EVENT_DATA.keys() == {*EventName}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("error", {}),
        ("status", {"status": "succeeded", "attempt": 1, "worker": None}),
        ("status", {"status": "queued", "attempt": 1}),
        ("token", {"offset": 0, "count": 1, "text": 3}),
        ("token", {"offset": 0, "count": 1, "text": "a", "more": 1}),
    ],
)
def test_an_event_off_its_schema_is_noticed(name: str, data: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match=r"is not|not documented|required"):
        check_event(name, data)
