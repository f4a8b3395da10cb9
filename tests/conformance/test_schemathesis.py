"""The API agrees with its OpenAPI document: for any request no 5xx, and no undocumented status, type or body."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from api.app import create_app
from tests.helpers.api_client import server, settings_for
from tests.helpers.fake_worker import BPE_CARD, fake_worker
from tests.helpers.tokenizer_files import pickled
from worker.checkpoints.tokenizers.bpe import BpeTokenizer
from worker.checkpoints.tokenizers.export import served_blob

MAX_EXAMPLES = 40
CARD = replace(BPE_CARD, tokenizer=replace(BPE_CARD.tokenizer, chat="nanochat"))
#: Size of the published tokenizer, which is smaller than the card's: ids above it have no text.
VOCAB_SIZE = 320
#: Checks that do not hold. A schema cannot say which models, cursors and characters exist, so data that is valid by the
#: schema may be refused. As in the guide's server, `"5"` and `true` count as numbers, so data that is not valid by the
#: schema may be accepted.
EXCLUDED_CHECKS: list[schemathesis.CheckFunction] = [positive_data_acceptance, negative_data_rejection]

schema = schemathesis.openapi.from_dict(create_app().openapi())


@pytest.fixture(scope="module")
def url(redis_server: str) -> Iterator[str]:
    """A server whose worker accepts any prompt and any conversation."""
    chosen = settings_for(f"{redis_server}?db=1", long_poll_max_s=0.1, max_wait_s=1.0)
    tokenizer = served_blob(BpeTokenizer.from_pickle(pickled(), VOCAB_SIZE), vocab_size=VOCAB_SIZE, context=128)
    with fake_worker(chosen, CARD) as worker, server(chosen) as url:
        worker.store.keep_tokenizer(CARD.digest, tokenizer)
        yield url


@schema.parametrize()
@settings(max_examples=MAX_EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_as_documented(case: Case[Any], url: str) -> None:
    case.call_and_validate(base_url=url, excluded_checks=EXCLUDED_CHECKS)
