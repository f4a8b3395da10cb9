"""The parts that the answers of `/v1/completions` and `/v1/chat/completions` share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Model

#: Why a text ended, in OpenAI's words.
StopReason = Literal["stop", "length"]


class PromptTokensDetails(Model):
    """Details of the prompt's tokens."""

    cached_tokens: int = Field(description="Tokens that did not have to be computed again.")


class TokenUsage(Model):
    """Token counts of a call. Each prompt counts once, also with several answers to it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ToolUse(Model):
    """One use of the checkpoint's calculator. It is no part of the text."""

    input: str
    output: str = Field(description="The result; empty if the expression was refused.")


class ChoiceJob(Model):
    """The job of a choice. A field of this server, which clients of OpenAI's API ignore."""

    job_id: str
    attempts: int = Field(description="How many times a worker has claimed the job.")
    tool_calls: list[ToolUse] = Field(description="Uses of the calculator.")
