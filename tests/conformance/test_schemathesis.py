"""The OpenAPI document and the API agree: no 5xx, no undocumented status, type or body, whatever is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from api.app import create_app
from tests.helpers.api_client import server, settings_for
from tests.helpers.fake_worker import BPE_CARD, fake_worker

MAX_EXAMPLES = 40
#: A schema cannot say which models, cursors and characters there are, so valid data may rightly be refused; and as in
#: the guide's server `"5"` and `true` do for numbers, so data that breaks the schema may be taken.
NOT_PROMISED: list[schemathesis.CheckFunction] = [positive_data_acceptance, negative_data_rejection]

schema = schemathesis.openapi.from_dict(create_app().openapi())


@pytest.fixture(scope="module")
def url(redis_server: str) -> Iterator[str]:
    """A server whose worker takes any prompt."""
    chosen = settings_for(f"{redis_server}?db=1", long_poll_max_s=0.1, max_wait_s=1.0)
    with fake_worker(chosen, BPE_CARD), server(chosen) as url:
        yield url


@schema.parametrize()
@settings(max_examples=MAX_EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_as_documented(case: Case[Any], url: str) -> None:
    case.call_and_validate(base_url=url, excluded_checks=NOT_PROMISED)
