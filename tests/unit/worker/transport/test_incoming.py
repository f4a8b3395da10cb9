"""What is a message of a job, and what of it reaches Celery."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tasks.celery_app import make_app
from tasks.job_id import new_job_id
from tasks.message import Renderer
from tasks.settings import Settings
from tests.helpers.bad_messages import SECRET, bad_messages
from worker.transport.channel import check_unacked
from worker.transport.incoming import Incoming, JobMessage, NoMessageError, parse

QUEUE = "generate.a b/é"


def rendered(job_id: str) -> str:
    return Renderer(make_app(Settings())).render(job_id, QUEUE)


def without_origin(message: str) -> dict[str, Any]:
    """The message without what differs between two processes or two renderers."""
    fields: dict[str, Any] = json.loads(message)
    fields["properties"].pop("reply_to")
    fields["headers"].pop("origin")
    return fields


def test_a_rendered_message_is_rendered_again_as_it_was() -> None:
    job_id = new_job_id()
    message = rendered(job_id)
    found = parse(message.encode())
    assert found.job_id == job_id
    again = Incoming(make_app(Settings()), QUEUE).render(found)
    assert without_origin(again) == without_origin(message)


def test_only_the_id_and_the_tag_of_a_message_remain() -> None:
    job_id = new_job_id()
    fields = json.loads(rendered(job_id))
    fields["headers"] |= {
        "eta": SECRET,
        "expires": SECRET,
        "retries": SECRET,
        "timelimit": SECRET,
        "compression": SECRET,
        "stamped_headers": [SECRET],
        "group": SECRET,
    }
    fields["properties"] |= {"priority": SECRET, "delivery_info": SECRET, "reply_to": SECRET, "delivery_tag": "a-tag"}
    callbacks = {"callbacks": [SECRET], "errbacks": [SECRET], "chain": [SECRET], "chord": SECRET}
    fields["body"] = base64.b64encode(json.dumps([[job_id], {}, callbacks]).encode()).decode()
    found = parse(json.dumps(fields).encode())
    assert found == JobMessage(job_id, "a-tag")
    assert SECRET not in Incoming(make_app(Settings()), QUEUE).render(found)


@pytest.mark.parametrize("tag", [None, "", 7, ["x"], {"x": 1}, "x" * 100, "\n", "\ud800"])
def test_a_delivery_tag_that_cannot_be_a_key_is_replaced(tag: object) -> None:
    fields = json.loads(rendered(new_job_id()))
    fields["properties"]["delivery_tag"] = tag
    assert len(parse(json.dumps(fields).encode()).delivery_tag) == 36


@pytest.mark.parametrize("bad", bad_messages(rendered("job_01JZ8K6T4V9Q0000000000000A")).values())
def test_what_is_no_message_is_refused_without_a_quote(bad: bytes) -> None:
    with pytest.raises(NoMessageError) as refusal:
        parse(bad)
    assert SECRET not in str(refusal.value)


def test_unacknowledged_messages_of_other_programs_are_left_to_kombu() -> None:
    foreign = json.dumps([{"headers": {}, "properties": {"delivery_info": {}}, "body": ""}, "", "celery"])
    check_unacked(foreign.encode(), [QUEUE])
    ours = json.dumps([{"headers": {}, "properties": {"delivery_info": {}}, "body": ""}, "", QUEUE])
    with pytest.raises(NoMessageError):
        check_unacked(ours.encode(), [QUEUE])
    check_unacked(json.dumps([json.loads(rendered(new_job_id())), "", QUEUE]).encode(), [QUEUE])
