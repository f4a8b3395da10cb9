"""The files beside a `tokenizer.json`: `tokenizer_config.json` and `chat_template.jinja`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.json_file import read_object
from worker.checkpoints.regular_file import read_bytes

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
#: The largest chat template that is used, in bytes. Those of known models have at most 30,000.
MAX_TEMPLATE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceConfig:
    """What the files say about special tokens and chat."""

    eos_token: str | None = None
    #: The Jinja template for conversations; None if there is none.
    chat_template: str | None = None
    #: What the template may use: the special tokens by the names of their fields, such as `bos_token`.
    variables: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def beside(cls, file: Path) -> HuggingFaceConfig:
        """Read the files in the folder of a `tokenizer.json`. Raises TokenizerError."""
        path, template = file.with_name(CONFIG_NAME), file.with_name(TEMPLATE_NAME)
        content = read_object(path, TokenizerError) if path.is_file() else {}
        try:
            if template.is_file():
                chat_template: str | None = read_bytes(template, MAX_TEMPLATE_BYTES, TokenizerError).decode()
            else:
                chat_template = _default_template(content.get("chat_template"))
        except UnicodeDecodeError as error:
            raise TokenizerError(template, f"is not UTF-8: {error}") from error
        except ValueError as error:
            raise TokenizerError(path, f"its `chat_template` {error}") from error
        return cls(
            eos_token=_text_of(content.get("eos_token")),
            chat_template=chat_template,
            variables=_variables(content),
        )

    def content(self) -> bytes:
        """Everything that determines the ids of a prompt or of the end of an answer; empty without any."""
        parts = []
        if self.eos_token is not None:
            parts.append(b"eos_token " + self.eos_token.encode(errors="surrogatepass"))
        if self.chat_template is not None:
            parts.append(b"chat_template " + json.dumps([self.chat_template, self.variables]).encode())
        return b"\n".join(parts)


def _default_template(found: object) -> str | None:
    """The template in `tokenizer_config.json`: a text, or a list of named ones. Raises ValueError, with the reason."""
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        if len(named) != len(found) or "default" not in named:
            raise ValueError("is a list, and none of its templates is named `default`")
        found = named["default"]
    if found is None:
        return None
    if not isinstance(found, str):
        raise ValueError("is neither a text nor a list of named texts")  # noqa: TRY004
    if len(found.encode(errors="surrogatepass")) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"is larger than {MAX_TEMPLATE_BYTES:,} bytes, the most that is used")
    return found


def _text_of(token: object) -> str | None:
    """A token is a text, or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _variables(content: dict[str, Any]) -> dict[str, Any]:
    variables: dict[str, Any] = {
        name: text
        for name, token in content.items()
        if name.endswith("_token") and (text := _text_of(token)) is not None
    }
    more = content.get("extra_special_tokens")
    if isinstance(more, dict):
        variables |= {name: text for name, token in more.items() if (text := _text_of(token)) is not None}
    listed = content.get("additional_special_tokens")
    if isinstance(listed, list):
        variables["additional_special_tokens"] = [text for one in listed if (text := _text_of(one)) is not None]
    return variables
