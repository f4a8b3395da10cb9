"""`/v1/responses`: answers that outlive their connections."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from api.http.openapi import (
    CALL_CODES,
    CHANGE_CODES,
    QUEUE_CODES,
    SUBMIT_CODES,
    chunk_content,
    headers,
    openai_errors,
)
from api.http.parameters import SubmitHeadersDep, UrlPrefixDep
from api.http.problems import Code
from api.http.strict_json import StrictRoute
from api.jobs.responses import json_response
from api.openai.call_idempotency import call_idempotency
from api.openai.headers import ANSWER_HEADERS
from api.schemas.openai.responses import DeletedResponse, InputItems, ModelResponse, ResponseEvent, ResponseRequest
from api.services import ServicesDep

router = APIRouter(route_class=StrictRoute, prefix="/v1/responses", tags=["openai"])

#: Messages on one page of a response's input: the default and the maximum.
DEFAULT_PAGE = 20
MAX_PAGE = 100

ResponseId = Annotated[
    str, Path(description="Id of a response.", examples=["resp_01JZ8K6T4V9QABCDEFGHJKMNPQ"], max_length=64)
]
_STREAM = chunk_content(ResponseEvent)
_READ_CODES = (*QUEUE_CODES, Code.INVALID_REQUEST, Code.NOT_FOUND)


@router.post(
    "",
    response_model=ModelResponse,
    summary="Create a response",
    responses={
        200: {
            "description": "The response: over, or with `background` as it is now. With `stream`: its events.",
            "content": _STREAM,
            "headers": headers(**ANSWER_HEADERS),
        },
        **openai_errors((*SUBMIT_CODES, *CALL_CODES)),
    },
)
async def create(
    body: ResponseRequest,
    request: Request,
    services: ServicesDep,
    submit_headers: SubmitHeadersDep,
    prefix: UrlPrefixDep,
) -> Response:
    """Answers in a conversation, in the format of OpenAI's API. The response is kept as its job is.

    Only for checkpoints with a chat template: others are refused with the code `chat_unsupported`.
    """
    key = call_idempotency(await request.json(), submit_headers, route="responses")
    return await services.model_responses.create(body, submit_headers, prefix, key=key, receive=request.receive)


@router.get(
    "/{response_id}",
    response_model=ModelResponse,
    summary="Read a response",
    responses={
        200: {
            "description": "The response with its text so far. With `stream`: its events.",
            "content": _STREAM,
        },
        **openai_errors(_READ_CODES),
    },
)
async def read(
    response_id: ResponseId,
    services: ServicesDep,
    prefix: UrlPrefixDep,
    stream: bool = False,
    starting_after: Annotated[
        int | None, Query(ge=0, le=10**9, description="With `stream`: only events with a higher `sequence_number`.")
    ] = None,
) -> Response:
    """A response, or its stream from the beginning or from any event. Closing the stream cancels nothing."""
    if stream:
        return await services.model_responses.stream(response_id, prefix, starting_after=starting_after)
    return json_response(await services.model_responses.get(response_id))


@router.post(
    "/{response_id}/cancel",
    response_model=ModelResponse,
    summary="Cancel a response",
    responses=openai_errors((*CHANGE_CODES, *_READ_CODES)),
)
async def cancel(response_id: ResponseId, services: ServicesDep) -> Response:
    """Stops a response, which keeps its text so far. One that is over stays unchanged."""
    return json_response(await services.model_responses.cancel(response_id))


@router.delete(
    "/{response_id}",
    response_model=DeletedResponse,
    summary="Delete a response",
    responses=openai_errors((*CHANGE_CODES, *_READ_CODES)),
)
async def delete(response_id: ResponseId, services: ServicesDep) -> DeletedResponse:
    """Deletes a response with its job, and stops it if it is not over."""
    await services.model_responses.delete(response_id)
    return DeletedResponse(id=response_id)


@router.get(
    "/{response_id}/input_items",
    response_model=InputItems,
    summary="List the input of a response",
    responses=openai_errors(_READ_CODES),
)
async def input_items(
    response_id: ResponseId,
    services: ServicesDep,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=128, description="Id of the last item that you have.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
) -> InputItems:
    """The messages of the request, without those of previous responses."""
    items = await services.model_responses.input_items(response_id)
    if order == "desc":
        items.reverse()
    ids = [item.id for item in items]
    first = ids.index(after) + 1 if after in ids else 0
    page = items[first : first + limit]
    return InputItems(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=first + limit < len(items),
    )
