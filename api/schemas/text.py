"""Texts that can be encoded as UTF-8, as the record of a job requires it."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def encodable(text: str) -> str:
    """The text as it is. Raises PydanticCustomError for one with a lone surrogate, which only JSON can contain."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError(
            "string_unicode",
            "The text has half of a surrogate pair at index {index}, which is not a character.",
            {"index": error.start},
        ) from error
    return text


#: A text for a model.
Text = Annotated[str, AfterValidator(encodable)]
