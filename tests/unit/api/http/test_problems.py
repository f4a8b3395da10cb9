"""The table of errors, their formats, and how much of the caller's input they repeat."""

import json
from pathlib import Path

import pytest

from api.http.problems import KINDS, ApiError, Code, FieldError, invalid, presentable


def test_every_code_has_a_row() -> None:
    assert set(KINDS) == set(Code)


DEEP: list[object] = []
for _ in range(2000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("-inf"), "\ud800", {"\udfff": "\ud800"}, 10**5000, DEEP, b"\xff", ValueError("\ud800")],
    ids=["nan", "inf", "surrogate", "surrogate key", "huge", "deep", "bytes", "exception"],
)
def test_any_input_can_be_repeated_as_json(value: object) -> None:
    assert json.dumps(presentable(value), allow_nan=False, ensure_ascii=False).encode()


def test_only_a_part_of_a_long_input_is_repeated() -> None:
    assert len(json.dumps(presentable({str(i): "x" * 10_000 for i in range(1000)}))) < 10_000


def test_one_error_in_both_formats() -> None:
    error = invalid(("body", "stop", 0), "Too long", "string_too_long", given="x", ctx={"max_length": 3})
    assert error.to_legacy() == {
        "detail": [
            {
                "type": "string_too_long",
                "loc": ["body", "stop", 0],
                "msg": "Too long",
                "input": "x",
                "ctx": {"max_length": 3},
            }
        ]
    }
    assert error.to_problem("/v1/jobs") == {
        "type": "urn:celeriac:problem:invalid_request",
        "title": "The request is not valid",
        "status": 422,
        "detail": "Too long",
        "instance": "/v1/jobs",
        "code": "invalid_request",
        "retryable": False,
        "errors": [{"detail": "Too long", "type": "string_too_long", "pointer": "#/stop/0"}],
    }


def test_names_are_escaped_in_a_json_pointer() -> None:
    assert FieldError(("body", "metadata", "a/b~c"), "", "").to_problem()["pointer"] == "#/metadata/a~1b~0c"


def test_extra_members_and_retry_after_are_in_the_response() -> None:
    error = ApiError(Code.QUEUE_FULL, "Full.", retry_after_s=7, extra={"limit": 3})
    assert error.to_legacy() == {"detail": "Full.", "limit": 3}
    assert error.to_problem("/")["limit"] == 3
    assert error.all_headers() == {"Retry-After": "7"}


@pytest.mark.parametrize("code", Code)
def test_the_reference_lists_every_code_with_its_status(code: Code) -> None:
    reference = (Path(__file__).parents[4] / "docs" / "reference" / "http.md").read_text("utf-8")
    assert f"| `{code}` | {KINDS[code].status} |" in reference
