"""The interactive documentation, `GET /docs` and `GET /redoc`, and the files of its pages.

The files come from the package `fastapi-offline`, so the pages work where there is no internet. Nothing is loaded from
another origin: the pages name none, and their `Content-Security-Policy` forbids what their scripts would load.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse

from api.http.conditional import not_modified
from api.http.parameters import UrlPrefixDep

#: Path of the OpenAPI document.
OPENAPI_PATH = "/openapi.json"
#: Path of the files, without the prefix of a proxy.
FILES_PATH = "/docs/files"
#: The files of the pages and their media types.
FILES = {
    "favicon.png": "image/png",
    "redoc.standalone.js": "text/javascript",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
}
#: How long a client uses a file without asking whether it has changed, in seconds.
FILE_MAX_AGE_S = 3600

_FOLDER = Path(fastapi_offline.__file__).parent / "static"
#: Redoc would load a logo, and Swagger UI a badge of a validator. Redoc searches in a worker that it makes from a blob.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self'"
)

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def swagger_ui(request: Request, prefix: UrlPrefixDep) -> Response:
    """The page of Swagger UI."""
    page = get_swagger_ui_html(
        openapi_url=prefix + OPENAPI_PATH,
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{prefix}{FILES_PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{prefix}{FILES_PATH}/swagger-ui.css",
        swagger_favicon_url=f"{prefix}{FILES_PATH}/favicon.png",
        swagger_ui_parameters={"validatorUrl": None},
    )
    return _page(page)


@router.get("/redoc")
async def redoc(request: Request, prefix: UrlPrefixDep) -> Response:
    """The page of Redoc."""
    page = get_redoc_html(
        openapi_url=prefix + OPENAPI_PATH,
        title=f"{request.app.title} - Redoc",
        redoc_js_url=f"{prefix}{FILES_PATH}/redoc.standalone.js",
        redoc_favicon_url=f"{prefix}{FILES_PATH}/favicon.png",
        with_google_fonts=False,
    )
    return _page(page)


def _file_endpoint(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def file(request: Request) -> Response:
        path = _FOLDER / name
        headers = {"Cache-Control": f"public, max-age={FILE_MAX_AGE_S}", "X-Content-Type-Options": "nosniff"}
        response = FileResponse(path, headers=headers, media_type=FILES[name], stat_result=path.stat())
        return not_modified(request, response)

    return file


for _name in FILES:
    router.add_api_route(f"{FILES_PATH}/{_name}", _file_endpoint(_name))


def _page(page: Response) -> Response:
    page.headers["Content-Security-Policy"] = _POLICY
    page.headers["Cache-Control"] = "no-cache"
    return page
