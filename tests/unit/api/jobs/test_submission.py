"""Key and fingerprint of a request: what makes two requests the same."""

import hashlib

import pytest

from api.http.request_headers import Preferences, SubmitHeaders
from api.jobs.submission import idempotency
from api.jobs.submit_and_wait import request_idempotency
from api.schemas.generation import JobRequest


def made(key: str = "k", owner: str = "o", route: str = "jobs", **body: object) -> tuple[str, str]:
    found = idempotency(key, owner=owner, route=route, request={"prompt": "1", **body})
    assert found is not None
    return found.key_hash, found.fingerprint


def test_a_fingerprint_covers_only_what_was_sent() -> None:
    """So the same request is the same after an upgrade that adds optional fields, or that changes a default."""
    # This value never changes: keys from before an upgrade have it.
    assert made()[1] == hashlib.sha256(b'{"prompt":"1"}').hexdigest()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"top_k": None}, {}),
        ({"temperature": 1.0}, {"temperature": 1}),
        ({"top_k": 2, "seed": 1}, {"seed": 1, "top_k": 2}),
        ({"metadata": {"b": "1", "a": "2"}}, {"metadata": {"a": "2", "b": "1"}}),
    ],
)
def test_spellings_of_a_request_have_the_same_fingerprint(one: dict[str, object], other: dict[str, object]) -> None:
    assert made(**one) == made(**other)


@pytest.mark.parametrize("sent", [{"max_tokens": 100}, {"temperature": 0.8}, {"metadata": {}}, {"unknown": 1}])
def test_a_field_that_was_sent_makes_another_request_than_one_that_was_not(sent: dict[str, object]) -> None:
    """Even with its default, which another version may change."""
    assert made(**sent) != made()


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
        found = request_idempotency({"prompt": "1", "deadline_s": body_s}, body, headers, route="jobs")
        assert found is not None
        return found.fingerprint

    assert fingerprint(in_body, in_header) == fingerprint(same_as, None)
    assert fingerprint(in_body, in_header) != fingerprint(None, None)
