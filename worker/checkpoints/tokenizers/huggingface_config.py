"""The files beside a `tokenizer.json`: `tokenizer_config.json` and `chat_template.jinja`."""

from __future__ import annotations

import json
from collections.abc import Iterator
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


@dataclass(frozen=True, slots=True)
class DeclaredToken:
    """A token in `added_tokens_decoder`."""

    token_id: int
    name: str
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceConfig:
    """What the files say about special tokens and chat."""

    bos_token: str | None = None
    eos_token: str | None = None
    #: Whether a text begins with BOS. None: as the post-processor in `tokenizer.json` has it.
    adds_bos: bool | None = None
    #: Names that are special tokens, even if `tokenizer.json` does not say so.
    special_names: tuple[str, ...] = ()
    #: Tokens that `tokenizer.json` must have, or that are added to it.
    declared: tuple[DeclaredToken, ...] = ()
    #: Ids with which the files of the model end a text. None: the folder is nanochat's. Then BOS and the ends of a text
    #: are known by their names.
    stop_ids: frozenset[int] | None = None
    #: The Jinja template for conversations; None if there is none.
    chat_template: str | None = None
    #: What the template may use: the special tokens by the names of their fields, such as `bos_token`.
    variables: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def beside(cls, file: Path, stop_ids: frozenset[int] | None = None) -> HuggingFaceConfig:
        """Read the files in the folder of a `tokenizer.json`. Raises TokenizerError. `stop_ids`: see the field."""
        path, template = file.with_name(CONFIG_NAME), file.with_name(TEMPLATE_NAME)
        content = read_object(path, TokenizerError) if path.is_file() else {}
        try:
            if template.is_file():
                chat_template: str | None = read_bytes(template, MAX_TEMPLATE_BYTES, TokenizerError).decode()
            else:
                chat_template = _default_template(content.get("chat_template"))
            return cls(
                bos_token=_text_of(content.get("bos_token")),
                eos_token=_text_of(content.get("eos_token")),
                adds_bos=_adds_bos(content),
                special_names=tuple(dict.fromkeys(_special_names(content))),
                declared=tuple(_declared(content.get("added_tokens_decoder"))),
                stop_ids=stop_ids,
                chat_template=chat_template,
                variables=_variables(content),
            )
        except UnicodeDecodeError as error:
            raise TokenizerError(template, f"is not UTF-8: {error}") from error
        except ValueError as error:
            raise TokenizerError(path, str(error)) from error

    def content(self) -> bytes:
        """Everything that determines the ids of a prompt or of the end of an answer; empty without any."""
        parts = []
        if self.eos_token is not None:
            parts.append(b"eos_token " + self.eos_token.encode(errors="surrogatepass"))
        if self.chat_template is not None:
            parts.append(b"chat_template " + json.dumps([self.chat_template, self.variables]).encode())
        if self.stop_ids is not None:
            declared = [[one.token_id, one.name, one.special] for one in self.declared]
            tokens = [self.bos_token, self.adds_bos, self.special_names, declared, sorted(self.stop_ids)]
            parts.append(b"tokens " + json.dumps(tokens).encode())
        return b"\n".join(parts)


def _default_template(found: object) -> str | None:
    """The template in `tokenizer_config.json`: a text, or named ones. Raises ValueError, with the reason."""
    if isinstance(found, list):
        named = {
            name: one.get("template")
            for one in found
            if isinstance(one, dict) and isinstance(name := one.get("name"), str)
        }
        found = named if len(named) == len(found) else {}
    if isinstance(found, dict):
        if "default" not in found:
            raise ValueError("its `chat_template` is a list, and none of its templates is named `default`")
        found = found["default"]
    if found is None:
        return None
    if not isinstance(found, str):
        raise ValueError("its `chat_template` is neither a text nor a list of named texts")  # noqa: TRY004
    if len(found.encode(errors="surrogatepass")) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"its `chat_template` is larger than {MAX_TEMPLATE_BYTES:,} bytes, the most that is used")
    return found


def _adds_bos(content: dict[str, Any]) -> bool | None:
    found = content.get("add_bos_token")
    if not isinstance(found, bool | None):
        raise ValueError("its `add_bos_token` must be true or false")  # noqa: TRY004
    if found and _text_of(content.get("bos_token")) is None:
        raise ValueError("its `add_bos_token` is true, and it has no `bos_token`")
    return found


def _text_of(token: object) -> str | None:
    """A token is a text, or an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _named(content: dict[str, Any]) -> dict[str, str]:
    """The special tokens by the names of their fields, such as `bos_token`."""
    fields = {name: token for name, token in content.items() if name.endswith("_token")}
    more = content.get("extra_special_tokens")
    if isinstance(more, dict):
        fields |= more
    return {name: text for name, token in fields.items() if (text := _text_of(token)) is not None}


def _listed(content: dict[str, Any], name: str) -> list[str]:
    tokens = content.get(name)
    return [text for one in tokens if (text := _text_of(one)) is not None] if isinstance(tokens, list) else []


def _special_names(content: dict[str, Any]) -> Iterator[str]:
    yield from _named(content).values()
    yield from _listed(content, "additional_special_tokens")
    yield from _listed(content, "extra_special_tokens")


def _declared(found: object) -> Iterator[DeclaredToken]:
    """The tokens of `added_tokens_decoder`, in the order of their ids. Raises ValueError, with the reason."""
    if not isinstance(found, dict):
        return
    for key in sorted(found, key=lambda one: (len(one), one)):
        token = found[key]
        if not (
            key.isascii() and key.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
        ):
            raise ValueError("its `added_tokens_decoder` must have an object with `content` for each token id")
        yield DeclaredToken(int(key), token["content"], bool(token.get("special")))


def _variables(content: dict[str, Any]) -> dict[str, Any]:
    variables: dict[str, Any] = dict(_named(content))
    if isinstance(content.get("additional_special_tokens"), list):
        variables["additional_special_tokens"] = _listed(content, "additional_special_tokens")
    return variables
