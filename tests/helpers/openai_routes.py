"""Which routes speak OpenAI's API, for tests of all routes."""

from __future__ import annotations

from typing import Any

from tests.helpers.openapi_document import document


def is_openai(path: str) -> bool:
    """Whether the errors of a path of the document are in OpenAI's format."""
    operations: dict[str, Any] = document()["paths"].get(path, {})
    return any("openai" in operation["tags"] for operation in operations.values())
