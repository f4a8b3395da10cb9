"""openai-python: what a call gets from a server whose queue is full. Prints one object."""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

given: dict[str, Any] = json.loads(sys.argv[1])
seen: dict[str, Any] = {}
for name, stream in (("whole", False), ("stream", True)):
    try:
        openai.OpenAI(max_retries=0, timeout=30).completions.create(model=given["model"], prompt="1+1=", stream=stream)
    except openai.RateLimitError as error:
        seen[name] = {
            "status": error.status_code,
            "type": error.type,
            "code": error.code,
            "retry_after": error.response.headers.get("retry-after"),
            "should_retry": error.response.headers.get("x-should-retry"),
        }
print(json.dumps(seen))
