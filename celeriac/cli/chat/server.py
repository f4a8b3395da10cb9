"""Answers of a server. Each one is a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from celeriac.cli.chat.backend import Answer, ChatError, too_long
from celeriac.cli.output import warn
from celeriac.cli.own_job import OwnJob
from celeriac.cli.progress import queued, state_of
from celeriac.client import (
    ApiError,
    AttemptEvent,
    DoneEvent,
    QueueEvent,
    ReconnectEvent,
    StatusEvent,
    TokenEvent,
)
from celeriac.errors import CeleriacError
from tasks.tool_call import ToolCall

if TYPE_CHECKING:
    from celeriac.cli.chat.screen import Screen
    from celeriac.client import InferenceClient, Job
    from tasks.chat import Message

#: How the API's message about a checkpoint without a chat template ends. It advises the author of a request.
_ADVICE = " Send `prompt` instead."


class ServerBackend:
    """Sends the whole conversation each time: the server keeps none."""

    def __init__(self, client: InferenceClient, request: Mapping[str, Any]) -> None:
        """`request`: the arguments of `client.submit` beside the messages."""
        self._client = client
        self._request = request

    @property
    def greeting(self) -> str:
        """See `Backend`."""
        return f"Chat with {self._request.get('model') or 'the model'} at {self._client.base_url}."

    def answer(self, messages: Sequence[Message], screen: Screen) -> Answer:
        """See `Backend`. An interruption cancels the job."""
        own = OwnJob(self._client, {**self._request, "messages": [asdict(message) for message in messages]})
        try:
            job = self._stream(own.submit(), screen)
        except ApiError as error:
            raise _chat_error(error.code, str(error).removeprefix("messages: ")) from error
        except CeleriacError as error:
            raise ChatError(str(error)) from error
        except (KeyboardInterrupt, SystemExit, OSError, UnicodeEncodeError):
            # The rest of the answer has no reader.
            own.cancel()
            raise
        return _answer(job)

    def _stream(self, job: Job, screen: Screen) -> Job:
        """Print the text of a job until it has ended, and return the ended job."""
        warned = False
        for event in self._client.stream(job):
            match event:
                case TokenEvent():
                    screen.print_text(event.text)
                case QueueEvent(position=position) if position and not warned:
                    warned = True
                    screen.print_note(f"({queued(position, event.eta_start_s)})")
                case AttemptEvent() | ReconnectEvent() | StatusEvent(status="queued"):
                    if state := state_of(event, job):
                        screen.print_note(f"({state})")
                case DoneEvent():
                    job = event.job
        warn(job.warnings)
        return job


def _answer(job: Job) -> Answer:
    """The answer of a job that has ended. Raises ChatError if it failed or expired."""
    if job.error is not None:
        raise _chat_error(job.error.code, job.error.message)
    if job.status not in ("succeeded", "cancelled"):
        raise ChatError(f"The job of the answer is {job.status}.")
    finish_reason = job.finish_reason or job.status
    return Answer(
        text=job.text or "",
        finish_reason=finish_reason,
        tool_calls=tuple(ToolCall(call.input, call.output) for call in job.tool_calls),
        context_full=finish_reason == "length" and job.tokens < job.max_tokens,
    )


def _chat_error(code: str | None, message: str) -> ChatError:
    match code:
        case "prompt_too_long":
            return too_long(message)
        case "chat_unsupported":
            return ChatError(f"{message.removesuffix(_ADVICE)} `celeriac generate` continues texts with it.")
    return ChatError(message)
