"""`POST /v1/chat/completions`: answers in a conversation."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.http.openapi import CALL_CODES, SUBMIT_CODES, chunk_content, headers, openai_errors
from api.http.parameters import SubmitHeadersDep, UrlPrefixDep
from api.http.strict_json import StrictRoute
from api.openai.call_idempotency import call_idempotency
from api.openai.chat_call import chat_call
from api.openai.chat_format import ChatFormat
from api.openai.headers import ANSWER_HEADERS
from api.schemas.jobs import JobResponse
from api.schemas.openai.chat import ChatChunk, ChatCompletion, ChatRequest
from api.services import ServicesDep

router = APIRouter(route_class=StrictRoute, prefix="/v1/chat/completions", tags=["openai"])


@router.post(
    "",
    response_model=ChatCompletion,
    summary="Answer in a conversation",
    responses={
        200: {
            "description": "The answers. With `stream`: chunks of them, each a block of data, and at the end `[DONE]`.",
            "content": chunk_content(ChatChunk),
            "headers": headers(**ANSWER_HEADERS),
        },
        202: {
            "model": JobResponse,
            "description": "With `Prefer`: not over within the time that you wanted to wait. The call's first job.",
        },
        **openai_errors((*SUBMIT_CODES, *CALL_CODES)),
    },
)
async def chat_completions(
    body: ChatRequest,
    request: Request,
    services: ServicesDep,
    submit_headers: SubmitHeadersDep,
    prefix: UrlPrefixDep,
) -> Response:
    """Answers the last message of a conversation, in the format of OpenAI's API. Each answer is a job of the queue.

    Only for checkpoints with a chat template: others are refused with the code `chat_unsupported`. If the client closes
    the connection, the jobs are cancelled, unless the request has an `Idempotency-Key`.
    """
    key = call_idempotency(await request.json(), submit_headers, route="chat.completions")
    return await services.openai_calls.respond(
        chat_call(body), ChatFormat(), submit_headers, prefix, key=key, receive=request.receive
    )
