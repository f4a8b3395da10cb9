"""What a Hugging Face tokenizer puts before a text, and which of its tokens end one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.checkpoints.tokenizers.base import BOS_TOKEN, STOP_TOKENS, eos_id_of
from worker.checkpoints.tokenizers.huggingface_config import CONFIG_NAME, HuggingFaceConfig

_BOS_TOKENS = (BOS_TOKEN, "<s>", "<bos>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The tokens at both ends of a text."""

    bos_id: int | None
    #: Whether every text begins with BOS.
    prepend_bos: bool
    #: Ids that end an answer.
    stop_ids: frozenset[int]
    #: The one of them that other programs know; None if there is none.
    eos_id: int | None

    @classmethod
    def by_name(cls, config: HuggingFaceConfig, vocabulary: Mapping[str, int], specials: Mapping[str, int]) -> Ends:
        """nanochat's rules: known names are BOS and the ends of a text, and BOS begins every text."""
        bos_id = next((specials[name] for name in _BOS_TOKENS if name in specials), None)
        eos_id = _id_of("eos_token", config.eos_token, vocabulary)
        named = (specials.get(name) for name in STOP_TOKENS)
        return cls(
            bos_id=bos_id,
            prepend_bos=bos_id is not None,
            stop_ids=frozenset(i for i in (*named, bos_id, eos_id) if i is not None),
            eos_id=eos_id_of(specials) if eos_id is None else eos_id,
        )

    @classmethod
    def by_files(cls, config: HuggingFaceConfig, vocabulary: Mapping[str, int], post_processor: Any) -> Ends:
        """The rules of Hugging Face folders: the files say what begins and what ends a text.

        `post_processor`: that of the tokenizer.json. Raises ValueError, with the reason.
        """
        bos_id, eos_id = (
            _id_of(field, name, vocabulary)
            for field, name in (("bos_token", config.bos_token), ("eos_token", config.eos_token))
        )
        if config.adds_bos is None:
            before = _added_before(post_processor)
            if len(before) > 1:
                raise ValueError(
                    f"its post-processor puts {len(before)} tokens before a text; one, which is BOS, is supported"
                )
            prepend_bos = bool(before)
            bos_id = before[0] if before else bos_id
        else:
            prepend_bos = config.adds_bos
        stop_ids = {*(config.stop_ids or ()), *(() if eos_id is None else (eos_id,))}
        return cls(
            bos_id=bos_id,
            prepend_bos=prepend_bos,
            stop_ids=frozenset(stop_ids),
            eos_id=min(stop_ids, default=None) if eos_id is None else eos_id,
        )


def _id_of(field: str, name: str | None, vocabulary: Mapping[str, int]) -> int | None:
    if name is not None and name not in vocabulary:
        raise ValueError(f"the `{field}` {name!r} of {CONFIG_NAME} is not in it")
    return None if name is None else vocabulary[name]


def _added_before(post_processor: Any) -> tuple[int, ...]:
    """The ids that a post-processor puts before a text."""
    kind = None if post_processor is None else post_processor.get("type")
    if kind == "Sequence":
        parts = [_added_before(part) for part in post_processor["processors"]]
        # The last one adds its tokens outermost.
        return tuple(token_id for part in reversed(parts) for token_id in part)
    if kind in ("BertProcessing", "RobertaProcessing"):
        return (post_processor["cls"][1],)
    if kind != "TemplateProcessing":
        return ()
    before: list[int] = []
    for piece in post_processor["single"]:
        if "Sequence" in piece:
            break
        before += post_processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return tuple(before)
