"""LangChain's classes for OpenAI's API. Prints one object with what they return."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

given: dict[str, Any] = json.loads(sys.argv[1])

sums = OpenAI(model=given["sums"], temperature=0, max_tokens=16, max_retries=0, batch_size=4)
chat = ChatOpenAI(model=given["chat"], temperature=0, max_tokens=12, max_retries=0)
TALK = [SystemMessage("Be brief."), HumanMessage("the sum")]
PROMPTS = [f"{i}+{i}=" for i in range(10)]


async def asynchronous() -> dict[str, Any]:
    """What the asynchronous methods return."""
    return {
        "invoke": await sums.ainvoke("123+456="),
        "stream": "".join([piece async for piece in sums.astream("123+456=")]),
        "batch": await sums.abatch(PROMPTS),
        "chat": (await chat.ainvoke(TALK)).content,
        "chat_stream": "".join([str(piece.content) async for piece in chat.astream(TALK)]),
    }


generated = sums.generate(PROMPTS)
answer = chat.invoke(TALK)
print(
    json.dumps(
        {
            "sync": {
                "invoke": sums.invoke("123+456="),
                "stream": "".join(sums.stream("123+456=")),
                "batch": sums.batch(PROMPTS),
                "chat": answer.content,
                "chat_stream": "".join(str(piece.content) for piece in chat.stream(TALK)),
            },
            "async": asyncio.run(asynchronous()),
            "usage": generated.llm_output,
            "generations": [[one.text for one in several] for several in generated.generations],
            "several": [
                [one.text for one in several]
                for several in OpenAI(model=given["sums"], n=2, best_of=1, seed=1, batch_size=3)
                .generate(["1+", "2+", "3+", "4+"])
                .generations
            ],
            "metadata": answer.response_metadata,
            "chat_usage": answer.usage_metadata,
            "logprobs": chat.bind(logprobs=True, top_logprobs=2).invoke(TALK).response_metadata["logprobs"],
        }
    )
)
