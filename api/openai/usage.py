"""Token counts of a call."""

from __future__ import annotations

from collections.abc import Iterable

from api.schemas.openai.answer import PromptTokensDetails, TokenUsage
from tasks.job import Job


def usage_of(jobs: Iterable[Job], *, prompt_only: bool = False) -> TokenUsage:
    """The counts of these jobs together, as far as they are known.

    Answers to the same prompt count it once. `prompt_only`: the tokens that they generated were not asked for.
    """
    listed = list(jobs)
    firsts = [job for job in listed if job.generation.choice == 0]
    prompt = sum(job.prompt_tokens or 0 for job in firsts)
    completion = 0 if prompt_only else sum(job.tokens for job in listed)
    return TokenUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(job.cached_tokens or 0 for job in firsts)),
    )
