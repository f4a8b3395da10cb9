"""openai-python: what its asynchronous client reads, with many calls at once. Prints one object with all of it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import openai

given: dict[str, Any] = json.loads(sys.argv[1])


async def streamed(client: openai.AsyncOpenAI, prompt: str) -> str:
    """The text of a stream."""
    async with await client.completions.create(
        model=given["sums"], prompt=prompt, max_tokens=8, temperature=0, stream=True
    ) as stream:
        return "".join([choice.text async for chunk in stream for choice in chunk.choices])


async def left_after_one_chunk(client: openai.AsyncOpenAI) -> str | None:
    """The job of a stream that is closed after its first chunk."""
    call = client.completions.with_streaming_response.create(
        model=given["sums"], prompt="1+", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    async with call as response:
        async for _ in response.iter_lines():
            break
        return response.headers.get("x-job-id")


async def main() -> dict[str, Any]:
    """Everything that the test compares."""
    async with openai.AsyncOpenAI(max_retries=0, timeout=60) as client:
        sums = [client.completions.create(model=given["sums"], prompt=f"{i}+{i}=", temperature=0) for i in range(20)]
        chats = [
            client.chat.completions.create(
                model=given["chat"], messages=[{"role": "user", "content": "the"}], max_tokens=8, seed=i
            )
            for i in range(10)
        ]
        streams = [streamed(client, f"{i}+{i}=") for i in range(20)]
        answers, talks, texts = await asyncio.gather(
            asyncio.gather(*sums), asyncio.gather(*chats), asyncio.gather(*streams)
        )
        try:
            await client.completions.create(model="nobody", prompt="1")
            error = None
        except openai.NotFoundError as raised:
            error = raised.code
        return {
            "models": [model.id async for model in client.models.list()],
            "sums": [answer.choices[0].text for answer in answers],
            "chats": [answer.choices[0].message.content for answer in talks],
            "streams": texts,
            "error": error,
            "left": await left_after_one_chunk(client),
        }


print(json.dumps(asyncio.run(main())))
