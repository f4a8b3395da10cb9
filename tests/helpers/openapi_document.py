"""Compares what the API answers with its OpenAPI document."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from api.app import create_app
from tasks.settings import Settings

STREAM_PATH = "/v1/jobs/{job_id}/stream"


@lru_cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return create_app(Settings()).openapi()


def check_event(name: str, data: Any) -> None:
    """Fails unless the event and its data are as the document says, without a member that it does not name."""
    content = document()["paths"][STREAM_PATH]["get"]["responses"]["200"]["content"]["text/event-stream"]
    assert name in content["x-events"], f"{name} is not documented"
    schema = {**content["x-events"][name], "components": document()["components"]}
    errors = [error.message for error in _validator(schema).iter_errors(data)]
    assert not errors, f"{name} {data}: {errors}"
    named = document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
    assert data.keys() <= named.keys(), f"{name}: {data.keys() - named.keys()} is not documented"


def _validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator(schema, format_checker=FormatChecker())
