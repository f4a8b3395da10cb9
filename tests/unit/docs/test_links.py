"""Files and headings that the documentation names exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.docs.pages import PAGES, ROOT, anchors, links, name_of, paths_named


def missing_paths(text: str) -> list[str]:
    """Paths of this repository that `text` names and that do not exist."""
    return sorted(path for path in paths_named(text) if not (ROOT / path).exists())


def broken_links(page: Path, text: str) -> list[str]:
    """Links of `text`, the text of `page`, that lead to no file or to no heading."""
    broken = []
    for link in links(text):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path.read_text("utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    assert not missing_paths(page.read_text("utf-8"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert not broken_links(page, page.read_text("utf-8"))


def test_a_path_that_does_not_exist_is_noticed() -> None:
    text = (
        "See `api/app.py`, `api/nowhere.py`, ~/.cache/celeriac/kernels, and run `pytest tests/unit/lost.py::test_it`."
    )
    assert missing_paths(text) == ["api/nowhere.py", "tests/unit/lost.py"]


def test_a_link_that_leads_nowhere_is_noticed() -> None:
    page = ROOT / "docs" / "guide.md"
    text = (
        "# A *first* `GET /v1/jobs/{id}`\n[here](#a-first-get-v1jobsid) [lost](#lost) [file](quickstart.md) "
        "[gone](gone.md) [other](../README.md#no-such-heading) [web](https://example.org/#x)\n"
    )
    assert anchors(text) == {"a-first-get-v1jobsid"}
    assert [link for link in broken_links(page, text) if link != "#a-first-get-v1jobsid"] == [
        "#lost",
        "gone.md",
        "../README.md#no-such-heading",
    ]


def test_equal_headings_have_numbers() -> None:
    assert anchors("# Keys\n## Keys\n```\n# no heading\n```\n### Keys\n") == {"keys", "keys-1", "keys-2"}
