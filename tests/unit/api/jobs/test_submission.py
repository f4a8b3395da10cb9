"""Key and fingerprint of a request: what makes two requests the same."""

import pytest

from api.http.request_headers import Preferences, SubmitHeaders
from api.jobs.submission import idempotency
from api.jobs.submit_and_wait import request_idempotency
from api.schemas.generation import GenerateRequest, JobRequest


def made(key: str = "k", owner: str = "o", route: str = "jobs", **body: object) -> tuple[str, str]:
    request = GenerateRequest.model_validate({"prompt": "1", **body}).model_dump(mode="json")
    found = idempotency(key, owner=owner, route=route, request=request)
    assert found is not None
    return found.key_hash, found.fingerprint


def test_all_spellings_of_a_request_have_the_same_fingerprint() -> None:
    assert made() == made(max_tokens=100, temperature="0.8", top_k=None)


def test_another_body_has_another_fingerprint_under_the_same_key() -> None:
    key_hash, fingerprint = made()
    other_hash, other_fingerprint = made(max_tokens=99)
    assert key_hash == other_hash
    assert fingerprint != other_fingerprint


def test_keys_of_other_owners_and_routes_are_different_keys() -> None:
    hashes = {made()[0], made(key="k2")[0], made(owner="o2")[0], made(route="generate")[0]}
    assert len(hashes) == 4


def test_without_a_key_there_is_no_fingerprint() -> None:
    assert idempotency(None, owner="o", route="jobs", request={"prompt": "1"}) is None


@pytest.mark.parametrize(
    ("in_body", "in_header", "same_as"), [(30, None, 30), (None, 30.0, 30), (60, 30.0, 30), (30, 60.0, 30)]
)
def test_the_fingerprint_has_the_shorter_of_body_and_cancel_after(
    in_body: float | None, in_header: float | None, same_as: float
) -> None:
    def fingerprint(body_s: float | None, header_s: float | None) -> str:
        body = JobRequest(prompt="1", deadline_s=body_s)
        headers = SubmitHeaders(Preferences(), ['"k"'], header_s)
        found = request_idempotency(body, headers, route="jobs")
        assert found is not None
        return found.fingerprint

    assert fingerprint(in_body, in_header) == fingerprint(same_as, None)
    assert fingerprint(in_body, in_header) != fingerprint(None, None)
