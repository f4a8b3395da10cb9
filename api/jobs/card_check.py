"""Checks of a request against the card of its checkpoint.

The worker checks, before it decodes, what needs the tokenizer, such as the length of a prompt in BPE tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from api.http.problems import ApiError, Code, FieldError, invalid
from tasks.card import Card
from tasks.generation import Generation
from tasks.sampling_params import SamplingParams

#: Most unknown characters that one error names.
MAX_NAMED_CHARACTERS = 10


def check_against(card: Card, generation: Generation) -> None:
    """Raises ApiError for a request that the checkpoint cannot run."""
    check_sampling(card, generation.sampling)
    if generation.prompt_ids is not None:
        check_ids(card, ("body", "prompt_token_ids"), generation.prompt_ids)
        refuse_long_prompt(card, "prompt_token_ids", len(generation.prompt_ids))
    elif generation.messages is not None:
        if card.tokenizer.chat is None:
            raise invalid(
                ("body", "messages"),
                f"{card.name} is not a chat model: it has no chat template. Send `prompt` instead.",
                "chat_unsupported",
                code=Code.CHAT_UNSUPPORTED,
            )
        # Other templates may leave out parts of a conversation.
        if card.tokenizer.chat == "nanochat":
            contents = (card.tokenizer.least_prompt_tokens(message.content) for message in generation.messages)
            refuse_long_prompt(card, "messages", sum(contents), exact=False)
    else:
        check_text(card, generation.prompt)


def check_sampling(card: Card, sampling: SamplingParams) -> None:
    """Raises ApiError for sampling fields that do not fit the checkpoint, or one another."""
    if sampling.top_k is not None and sampling.top_k > card.vocab_size:
        raise invalid(
            ("body", "top_k"),
            f"Input should be less than or equal to {card.vocab_size}",
            "less_than_equal",
            given=sampling.top_k,
            ctx={"le": card.vocab_size},
        )
    check_ids(card, ("body", "logit_bias"), [token for token, _ in sampling.logit_bias])
    check_ids(card, ("body", "stop_token_ids"), sampling.stop_token_ids)
    if sampling.min_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise invalid(
            ("body", "min_tokens"),
            f"Input should be less than or equal to max_tokens, which is {sampling.max_tokens}",
            "less_than_equal",
            given=sampling.min_tokens,
            ctx={"le": sampling.max_tokens},
        )


def check_ids(card: Card, location: tuple[str, ...], ids: Sequence[int]) -> None:
    """Raises ApiError if one of some token ids does not exist."""
    wrong = next((token for token in ids if not 0 <= token < card.vocab_size), None)
    if wrong is not None:
        raise invalid(
            location,
            f"{wrong} is no token of {card.name}: its ids are between 0 and {card.vocab_size - 1}.",
            "unknown_token",
            given=wrong,
        )


def check_text(card: Card, prompt: str) -> None:
    """Raises ApiError for a text with unknown characters, or one that is too long, as far as the card tells."""
    unknown = card.tokenizer.unknown_characters(prompt)
    if unknown and card.tokenizer.unknown == "refuse":
        raise ApiError(
            Code.INVALID_REQUEST,
            f"The vocabulary of {card.name} lacks {len(unknown)} of the prompt's characters. "
            f"`celeriac inspect {card.name}` prints the vocabulary.",
            errors=[_unknown_character(card, index, char) for index, char in unknown[:MAX_NAMED_CHARACTERS]],
        )
    tokens = card.tokenizer.prompt_tokens(prompt)
    if tokens == 0:
        raise invalid(
            ("body", "prompt"),
            f"The vocabulary of {card.name} has none of the prompt's characters.",
            "unknown_character",
            given=prompt,
        )
    if tokens is None:
        refuse_long_prompt(card, "prompt", card.tokenizer.least_prompt_tokens(prompt), exact=False)
    else:
        refuse_long_prompt(card, "prompt", tokens)


def refuse_long_prompt(card: Card, field: str, tokens: int, *, exact: bool = True) -> None:
    """Raises ApiError if a prompt of `tokens` tokens leaves no room for an answer. Not `exact`: a lower bound."""
    if tokens >= card.context:
        raise invalid(
            ("body", field),
            f"The prompt has {'' if exact else 'at least '}{tokens} tokens; the context of {card.name} is "
            f"{card.context}, and one token must remain for the answer. Shorten it to {card.context - 1} tokens or "
            "fewer.",
            Code.PROMPT_TOO_LONG.value,
            code=Code.PROMPT_TOO_LONG,
        )


def _unknown_character(card: Card, index: int, char: str) -> FieldError:
    return FieldError(
        ("body", "prompt"),
        f"The character {_named(char)} at index {index} is not in the vocabulary of {card.name}.",
        "unknown_character",
        char,
        {"index": index, "character": char},
    )


def _named(char: str) -> str:
    """A character for an error message: its repr and its code point."""
    return f"{char!r} (U+{ord(char):04X})"
