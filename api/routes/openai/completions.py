"""`POST /v1/completions`: continues prompts."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.http.openapi import CALL_CODES, SUBMIT_CODES, chunk_content, headers, openai_errors
from api.http.parameters import SubmitHeadersDep, UrlPrefixDep
from api.http.strict_json import StrictRoute
from api.openai.call_idempotency import call_idempotency
from api.openai.completion_call import completion_call
from api.openai.completion_format import CompletionFormat
from api.openai.headers import ANSWER_HEADERS
from api.schemas.jobs import JobResponse
from api.schemas.openai.completions import Completion, CompletionRequest
from api.services import ServicesDep

router = APIRouter(route_class=StrictRoute, prefix="/v1/completions", tags=["openai"])


@router.post(
    "",
    response_model=Completion,
    summary="Continue prompts",
    responses={
        200: {
            "description": "The answers. With `stream`: chunks of them, each a block of data, and at the end `[DONE]`.",
            "content": chunk_content(Completion),
            "headers": headers(**ANSWER_HEADERS),
        },
        202: {
            "model": JobResponse,
            "description": "With `Prefer`: not over within the time that you wanted to wait. The call's first job.",
        },
        **openai_errors((*SUBMIT_CODES, *CALL_CODES)),
    },
)
async def completions(
    body: CompletionRequest,
    request: Request,
    services: ServicesDep,
    submit_headers: SubmitHeadersDep,
    prefix: UrlPrefixDep,
) -> Response:
    """Continues one prompt or several, in the format of OpenAI's API. Each answer is a job of the queue.

    If the client closes the connection, the jobs are cancelled, unless the request has an `Idempotency-Key`.
    """
    key = call_idempotency(await request.json(), submit_headers, route="completions")
    return await services.openai_calls.respond(
        completion_call(body), CompletionFormat(), submit_headers, prefix, key=key, receive=request.receive
    )
