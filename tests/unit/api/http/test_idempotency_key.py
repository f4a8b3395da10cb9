"""The `Idempotency-Key` header, and what makes two requests the same."""

import pytest

from api.http.idempotency import idempotency, parse_key
from api.http.problems import ApiError
from api.schemas.generation import GenerateRequest


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"8e03978e-40d5"', "8e03978e-40d5"),
        ("8e03978e-40d5", "8e03978e-40d5"),
        (r'"with \"quotes\" and \\"', r'with "quotes" and \\'[:-1]),
        ('"key";version=1', "key"),
        ("  spaced  ", "spaced"),
    ],
)
def test_reads_the_key(value: str, key: str) -> None:
    assert parse_key([value]) == key


@pytest.mark.parametrize("lines", [[""], ['""'], ['"open'], ["two words"], ["ä"], ["x" * 256], ["a", "b"], ['"a\\b"']])
def test_refuses_what_is_no_key(lines: list[str]) -> None:
    with pytest.raises(ApiError) as raised:
        parse_key(lines)
    assert raised.value.http_status == 422
    assert raised.value.to_problem("/v1/jobs")["errors"][0]["header"] == "idempotency-key"


def made(key: str = "k", owner: str = "o", route: str = "jobs", **body: object) -> tuple[str, str]:
    asked = GenerateRequest.model_validate({"prompt": "1", **body}).model_dump(mode="json")
    found = idempotency([key], owner=owner, route=route, request=asked)
    assert found is not None
    return found.key_hash, found.fingerprint


def test_the_same_request_is_the_same_however_it_is_spelled() -> None:
    assert made() == made(max_tokens=100, temperature="0.8", top_k=None)


def test_another_body_has_another_fingerprint_under_the_same_key() -> None:
    key_hash, fingerprint = made()
    other_hash, other_fingerprint = made(max_tokens=99)
    assert key_hash == other_hash
    assert fingerprint != other_fingerprint


def test_keys_of_other_owners_and_routes_are_others() -> None:
    hashes = {made()[0], made(key="k2")[0], made(owner="o2")[0], made(route="generate")[0]}
    assert len(hashes) == 4


def test_without_the_header_there_is_no_key() -> None:
    assert idempotency([], owner="o", route="jobs", request={"prompt": "1"}) is None
