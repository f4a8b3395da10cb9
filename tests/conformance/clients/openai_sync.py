"""openai-python: what its synchronous client reads from each route. Prints one object with all of it."""

from __future__ import annotations

import json
import sys
import uuid
from typing import Any

import openai

given: dict[str, Any] = json.loads(sys.argv[1])
SUMS, CHAT = given["sums"], given["chat"]
ONCE = uuid.uuid4().hex
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the sum"}]

client = openai.OpenAI(max_retries=0, timeout=60)
seen: dict[str, Any] = {}


def dumped(value: Any) -> Any:
    """An answer as JSON, with the fields that the client does not know."""
    return value.model_dump(mode="json")


def error_of(call: Any) -> dict[str, Any]:
    """The exception that a call raises."""
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "param": error.param,
            "code": error.code,
            "type": error.type,
            "message": error.message,
            "request_id": error.request_id,
        }
    except openai.APIError as error:
        return {"class": type(error).__name__}
    return {"class": None}


# Models.
seen["models"] = [dumped(model) for model in client.models.list()]
seen["model"] = dumped(client.models.retrieve(SUMS))

# Completions.
plain: dict[str, Any] = {"model": SUMS, "max_tokens": 20, "temperature": 0}
seen["text"] = dumped(client.completions.create(prompt="123+456=", **plain))
seen["texts"] = dumped(client.completions.create(prompt=["1+1=", "2+2=", "3+4="], **plain))
seen["ids"] = dumped(client.completions.create(prompt=given["ids"], **plain))
seen["id_lists"] = dumped(client.completions.create(prompt=[given["ids"], given["ids"][:4]], **plain))
seen["n"] = dumped(client.completions.create(model=SUMS, prompt=["1+", "2+"], n=3, max_tokens=12, seed=5))
seen["n_again"] = dumped(client.completions.create(model=SUMS, prompt=["1+", "2+"], n=3, max_tokens=12, seed=5))
seen["echo"] = dumped(client.completions.create(prompt="123+456=", echo=True, logprobs=3, **plain))
seen["scored"] = dumped(
    client.completions.create(model=SUMS, prompt=given["ids"], echo=True, logprobs=1, max_tokens=0, temperature=0)
)
with client.completions.create(
    prompt=["123+456=", "2+2="], stream=True, stream_options={"include_usage": True}, logprobs=0, **plain
) as stream:
    seen["text_stream"] = [dumped(chunk) for chunk in stream]
raw = client.completions.with_raw_response.create(
    prompt="123+456=", extra_headers={"X-Request-ID": "mine-1", "Idempotency-Key": ONCE}, **plain
)
seen["headers"] = dict(raw.headers)
seen["request_id"] = raw.parse()._request_id
again = client.completions.with_raw_response.create(prompt="123+456=", extra_headers={"Idempotency-Key": ONCE}, **plain)
seen["headers_again"] = dict(again.headers)

# Chat.
talk: dict[str, Any] = {"model": CHAT, "messages": HELLO, "max_completion_tokens": 12, "temperature": 0}
seen["chat"] = dumped(client.chat.completions.create(**talk))
parts: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "the sum"}]},
]
seen["chat_parts"] = dumped(client.chat.completions.create(**talk | {"messages": parts}))
seen["chat_logprobs"] = dumped(client.chat.completions.create(logprobs=True, top_logprobs=2, **talk))
seen["chat_n"] = dumped(client.chat.completions.create(n=2, seed=3, **talk | {"temperature": 1}))
with client.chat.completions.create(
    stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=1, **talk
) as chat_stream:
    seen["chat_chunks"] = [dumped(chunk) for chunk in chat_stream]
# The SDK's helper raises an exception for an answer that was cut off, so this one ends by itself after four tokens.
ended = talk | {"logit_bias": {str(given["eos"]): 100}, "extra_body": {"min_tokens": 4}}
seen["chat_ended"] = dumped(client.chat.completions.create(**ended))
with client.chat.completions.stream(**ended) as events:
    seen["chat_events"] = [event.type for event in events]
    seen["chat_final"] = dumped(events.get_final_completion())

# Errors.
completions, chat = client.completions.create, client.chat.completions.create
seen["errors"] = {
    "no_model": error_of(lambda: completions(model="nobody", prompt="1")),
    "no_model_retrieve": error_of(lambda: client.models.retrieve("nobody")),
    "temperature": error_of(lambda: completions(model=SUMS, prompt="1", temperature=3)),
    "n_0": error_of(lambda: completions(model=SUMS, prompt="1", n=0)),
    "n_129": error_of(lambda: completions(model=SUMS, prompt="1", n=129)),
    "best_of": error_of(lambda: completions(model=SUMS, prompt="1", best_of=2)),
    "suffix": error_of(lambda: completions(model=SUMS, prompt="1", suffix="2")),
    "logprobs": error_of(lambda: completions(model=SUMS, prompt="1", logprobs=21)),
    "characters": error_of(lambda: completions(model=SUMS, prompt="hello")),
    "one_of_128": error_of(lambda: completions(model=SUMS, prompt=["1+1="] * 127 + ["hello"])),
    "too_long": error_of(lambda: completions(model=CHAT, prompt="a b " * 3000)),
    "no_bias": error_of(lambda: completions(model=SUMS, prompt="1", logit_bias={"99": 1})),
    "chat_of_base": error_of(lambda: chat(model=SUMS, messages=HELLO)),
    "no_messages": error_of(lambda: chat(model=CHAT, messages=[])),
    "role": error_of(lambda: chat(model=CHAT, messages=[{"role": "tool", "tool_call_id": "1", "content": "x"}])),
    "tools": error_of(lambda: chat(tools=[{"type": "function", "function": {"name": "f"}}], **talk)),
    "image": error_of(
        lambda: chat(
            model=CHAT,
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        )
    ),
    "timeout": error_of(
        lambda: client.with_options(timeout=0.2).completions.create(
            model=SUMS, prompt="1+", max_tokens=2000, n=64, extra_body={"ignore_eos": True}
        )
    ),
}  # fmt: skip
seen["version"] = openai.__version__
print(json.dumps(seen))
