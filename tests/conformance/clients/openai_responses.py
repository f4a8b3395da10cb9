"""openai-python: `client.responses`, every method of it. Prints one object with what it read."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai

given: dict[str, Any] = json.loads(sys.argv[1])
client = openai.OpenAI(max_retries=0, timeout=60)
seen: dict[str, Any] = {}
talk: dict[str, Any] = {
    "model": given["chat"],
    "instructions": "Be brief.",
    "input": "the sum",
    "max_output_tokens": 12,
    "temperature": 0,
}
#: The same text, cut where its first space is: it is complete.
ended = talk | {"extra_body": {"stop": " "}}
#: A response that lasts.
long = talk | {"max_output_tokens": 900, "background": True, "extra_body": {"ignore_eos": True}}


def dumped(value: Any) -> Any:
    """An answer as JSON."""
    return value.model_dump(mode="json")


def error_of(call: Any) -> dict[str, Any]:
    """The exception that a call raises."""
    try:
        call()
    except openai.APIStatusError as error:
        return {"class": type(error).__name__, "param": error.param, "code": error.code}
    return {"class": None}


def finished(response_id: str) -> Any:
    """A response when it is over."""
    while (response := client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        time.sleep(0.05)
    return response


first = client.responses.create(**talk, metadata={"run": "7"})
seen["first"] = dumped(first) | {"output_text": first.output_text}
seen["retrieved"] = dumped(client.responses.retrieve(first.id))
seen["items"] = [dumped(item) for item in client.responses.input_items.list(first.id)]
second = client.responses.create(**talk | {"input": "the end", "previous_response_id": first.id})
seen["second"] = dumped(second) | {"output_text": second.output_text}
parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": "the sum"}]}]
seen["parts"] = client.responses.create(**talk | {"input": parts}).output_text
scored = client.responses.create(**talk, include=["message.output_text.logprobs"], top_logprobs=2)
seen["scored"] = dumped(scored)

seen["raw_stream"] = [dumped(event) for event in client.responses.create(**talk, stream=True)]
with client.responses.stream(**ended) as stream:
    seen["events"] = [event.type for event in stream]
    final = stream.get_final_response()
seen["final"] = dumped(final) | {"output_text": final.output_text}
# The helper reads a stream again from its beginning, and leaves out what comes before `starting_after`.
with client.responses.stream(response_id=final.id, starting_after=4) as stream:
    seen["again"] = [event.type for event in stream]
    seen["again_text"] = stream.get_final_response().output_text
after = client.responses.retrieve(first.id, stream=True, starting_after=8)
seen["after"] = [dumped(event) for event in after]

background = client.responses.create(**talk, background=True)
seen["background"] = [background.status, finished(background.id).output_text]
lasting = client.responses.create(**long)
client.responses.cancel(lasting.id)
seen["cancelled"] = finished(lasting.id).status
client.responses.delete(first.id)

seen["errors"] = {
    "deleted": error_of(lambda: client.responses.retrieve(first.id)),
    "unknown": error_of(lambda: client.responses.retrieve("resp_nothing")),
    "previous": error_of(lambda: client.responses.create(**talk | {"previous_response_id": first.id})),
    "tools": error_of(lambda: client.responses.create(**talk, tools=[{"type": "web_search"}])),
    "base": error_of(lambda: client.responses.create(**talk | {"model": given["sums"]})),
    "input": error_of(lambda: client.responses.create(**talk | {"input": []})),
    "temperature": error_of(lambda: client.responses.create(**talk | {"temperature": 3})),
}
print(json.dumps(seen))
