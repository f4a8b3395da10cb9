"""`/docs` and `/redoc` work where there is no internet: the server has every file that they load."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser

import httpx
import pytest

from api.routes.documentation import FILES, FILES_PATH
from tasks.settings import Settings
from tests.helpers.api_client import running
from tests.helpers.applications import application

pytestmark = pytest.mark.anyio

PAGES = ("/docs", "/redoc")
#: Attributes of HTML elements whose value is a URL that a browser loads or follows.
URL_ATTRIBUTES = {"action", "data", "formaction", "href", "poster", "spec-url", "src", "srcset"}
#: A URL in the scripts of a page: `url: '/openapi.json'`.
SCRIPT_URL = re.compile(r"""\burl:\s*['"]([^'"]+)['"]""", re.IGNORECASE)


class References(HTMLParser):
    """Collects the URLs that a page names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.urls += [value for name, value in attrs if name in URL_ATTRIBUTES and value is not None]

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.urls += SCRIPT_URL.findall(data)
        elif self._inside == "style":
            assert "url(" not in data
            assert "@import" not in data


@pytest.fixture(params=[None, "/llm"], ids=["no root path", "root path"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    # No route here needs Redis.
    settings = Settings(redis_url="redis://127.0.0.1:1/0", root_path=request.param)
    with application(settings) as app:
        async with running(app) as client:
            client.base_url = client.base_url.join(request.param or "")
            yield client


@pytest.mark.parametrize("path", PAGES)
async def test_the_server_has_everything_that_a_page_loads(client: httpx.AsyncClient, path: str) -> None:
    page = await client.get(path)
    assert page.status_code == 200
    assert not re.search(r"(?:https?:|wss?:|['\"(])//", page.text), "the page names another server"
    prefix = client.base_url.path.rstrip("/")
    urls = References(page.text).urls
    assert {f"{prefix}{FILES_PATH}/favicon.png", f"{prefix}/openapi.json"} < {*urls}
    for url in urls:
        assert re.match(r"/(?!/)", url)
        found = await client.get(client.base_url.copy_with(path=url))
        assert found.status_code == 200, url
        assert found.content, url


@pytest.mark.parametrize("path", PAGES)
async def test_no_script_of_a_page_may_load_from_another_origin(client: httpx.AsyncClient, path: str) -> None:
    """Redoc's file names a logo of another server, and Swagger UI's a validator."""
    policy = (await client.get(path)).headers["content-security-policy"]
    directives = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    allowed = {source for name in directives if name.endswith("-src") for source in directives[name].split()}
    assert allowed <= {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}


@pytest.mark.parametrize("name", FILES)
async def test_a_file_is_cached(client: httpx.AsyncClient, name: str) -> None:
    url = f"{FILES_PATH}/{name}"
    first = await client.get(url)
    assert first.headers["content-type"].partition(";")[0] == FILES[name]
    assert "max-age=" in first.headers["cache-control"]
    assert int(first.headers["content-length"]) == len(first.content)
    again = await client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert again.headers["cache-control"] == first.headers["cache-control"]
    changed = await client.get(url, headers={"If-None-Match": '"other", W/"older"'})
    assert changed.status_code == 200
    head = await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == first.headers["content-length"]


@pytest.mark.parametrize("name", ["", "%2e%2e%2f__init__.py", "..%2f__init__.py", "swagger-ui.css.map", "x.js"])
async def test_only_these_files_are_served(client: httpx.AsyncClient, name: str) -> None:
    url = httpx.URL(f"{client.base_url}".rstrip("/") + f"{FILES_PATH}/{name}")
    assert (await client.get(url)).status_code == 404
    assert (await client.get(f"{FILES_PATH}/favicon.png?name=../__init__.py")).content[:4] == b"\x89PNG"
