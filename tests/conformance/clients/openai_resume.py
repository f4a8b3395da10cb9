"""openai-python: reads the stream of a response to its end, through everything that happens to the server.

Prints a line with the id of the response, a line for each event, and as the last line what it has read.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import openai

given: dict[str, Any] = json.loads(sys.argv[1])
#: How long the server may be away, in seconds.
AWAY_S = 60.0

client = openai.OpenAI(max_retries=0, timeout=60)
stream = client.responses.create(
    model=given["chat"],
    input="the sum",
    max_output_tokens=given["tokens"],
    temperature=1,
    stream=True,
    background=True,
    extra_body={"seed": given["seed"], "ignore_eos": True},
)
response_id, last = "", -1
numbers: list[int] = []
types: list[str] = []
text = ""
breaks = 0


def read(events: Any) -> bool:
    """Read events until the last one. False: the connection broke before it."""
    global response_id, last, text
    for event in events:
        numbers.append(event.sequence_number)
        types.append(event.type)
        last = event.sequence_number
        if event.type == "response.created":
            response_id = event.response.id
        if event.type == "response.output_text.delta":
            text += event.delta
        print(json.dumps({"id": response_id, "number": last, "type": event.type}), flush=True)
    return types[-1] in ("response.completed", "response.incomplete", "response.failed")


def continued() -> Any:
    """The stream after the last event, as soon as there is a server again."""
    deadline = time.monotonic() + AWAY_S
    while True:
        try:
            return client.responses.retrieve(response_id, stream=True, starting_after=last)
        except (openai.APIConnectionError, openai.InternalServerError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


over = False
while not over:
    try:
        over = read(stream if not breaks else continued())
    except Exception as error:  # noqa: BLE001 (a broken connection is an error of the HTTP library that the SDK uses)
        print(json.dumps({"broken": type(error).__name__}), flush=True)
    breaks += not over
response = client.responses.retrieve(response_id)
print(
    json.dumps(
        {
            "text": text,
            "output_text": response.output_text,
            "status": response.status,
            "numbers": numbers,
            "types": types,
            "breaks": breaks,
        }
    )
)
