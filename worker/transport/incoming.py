"""Checks what a worker takes from Celery's list, and renders it again from the job's id.

Anything may be on the list: it is an ordinary key of Redis. Celery and kombu trust it, and a part that they do not
expect ends the worker. The id is all that a message carries, so everything else in it is replaced.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

from celery import Celery

from tasks.celery_app import TASK_NAME
from tasks.job_id import JOB_ID
from tasks.message import Renderer

#: Longest message in bytes. One of ours has less than 2,000.
MAX_MESSAGE_BYTES = 65_536
#: Stands for the id of a job and for a delivery tag in the template.
_ANY_JOB = "job_00000000000000000000000000"
_ANY_TAG = "any-tag"
_ANY_BODY = "any-body"
_TAG = re.compile(r"[A-Za-z0-9_-]{1,64}")


class NoMessageError(Exception):
    """Not a message of a job. The text says why, and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class JobMessage:
    """What a message says."""

    job_id: str
    #: kombu's key for messages that are not acknowledged.
    delivery_tag: str


class Incoming:
    """Renders messages of one queue again. Cheap: it replaces the id in a message that Celery rendered once."""

    def __init__(self, app: Celery, queue: str) -> None:
        message = json.loads(Renderer(app).render(_ANY_JOB, queue))
        self._body = base64.b64decode(message["body"]).decode()
        message["body"] = _ANY_BODY
        message["properties"]["delivery_tag"] = _ANY_TAG
        self._template = json.dumps(message)

    def render(self, message: JobMessage) -> str:
        """The message as Celery renders it."""
        body = base64.b64encode(self._body.replace(_ANY_JOB, message.job_id).encode()).decode()
        rendered = self._template.replace(_ANY_JOB, message.job_id).replace(_ANY_BODY, body)
        return rendered.replace(_ANY_TAG, message.delivery_tag)


def parse(raw: bytes) -> JobMessage:
    """The message in an item of the list. Raises NoMessageError."""
    if len(raw) > MAX_MESSAGE_BYTES:
        raise NoMessageError("too large")
    return read(_json(raw, "not JSON"))


def read(message: Any) -> JobMessage:
    """The message in an envelope of kombu. Raises NoMessageError."""
    headers = _member(message, "headers", dict)
    if headers.get("task") != TASK_NAME:
        raise NoMessageError("another task, or none")
    job_id = headers.get("id")
    if not isinstance(job_id, str) or not JOB_ID.fullmatch(job_id):
        raise NoMessageError("no job id")
    if message.get("content-type") != "application/json" or message.get("content-encoding") != "utf-8":
        raise NoMessageError("another content type or encoding")
    properties = _member(message, "properties", dict)
    if properties.get("body_encoding") != "base64":
        raise NoMessageError("another encoding of the body")
    try:
        body = base64.b64decode(_member(message, "body", str), validate=True)
    except ValueError:
        raise NoMessageError("the body is not base64") from None
    content = _json(body, "the body is not JSON")
    if not isinstance(content, list) or content[:2] != [[job_id], {}]:
        raise NoMessageError("the body does not carry the job id alone")
    tag = properties.get("delivery_tag")
    sound = isinstance(tag, str) and _TAG.fullmatch(tag)
    return JobMessage(job_id, tag if sound else str(uuid.uuid4()))


def _member(message: Any, name: str, kind: type) -> Any:
    value = message.get(name) if isinstance(message, dict) else None
    if not isinstance(value, kind):
        raise NoMessageError(f"no {name}")
    return value


def _json(text: bytes, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NoMessageError(reason) from None
