"""Decodes with a checkpoint in this process, without a queue. `celeriac run` uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tasks.card import Card
from tasks.chat import Message
from tasks.generation import FinishReason
from tasks.job import ErrorCode
from tasks.logprobs import TokenLogprobs, unpack
from tasks.sampling_params import SamplingParams
from tasks.tool_call import ToolCall
from worker.checkpoints import formats
from worker.checkpoints.cards import build_card
from worker.checkpoints.errors import TokenizerError
from worker.checkpoints.folder import CheckpointFolder, find
from worker.checkpoints.sizes import sizes_of
from worker.checkpoints.tokenizers import Tokenizer, load_tokenizer, tool_content_of
from worker.engine.architecture.config import ModelConfig
from worker.engine.architecture.weight_form import Compute, WeightForm
from worker.engine.device import Device
from worker.engine.engine import Engine
from worker.engine.request import SequenceRequest
from worker.engine.update import Update
from worker.jobs.detokenizer import Detokenizer
from worker.jobs.prompt import PromptError, answer_tokens, encode_prompt, render_messages
from worker.model_loader import DeviceName, load_model


class LocalModelError(Exception):
    """A checkpoint that cannot be loaded, or a request that it cannot run. The message is for the user."""


class PromptTooLongError(LocalModelError):
    """The prompt leaves no room for an answer. The message names its tokens and the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The continuation of a prompt."""

    #: As the model got them, BOS included.
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    #: None if the checkpoint has no tokenizer.
    text: str | None
    finish_reason: FinishReason
    #: Uses of the calculator, whose tokens are in `token_ids` and not in the text.
    tool_calls: tuple[ToolCall, ...] = ()
    seed: int
    #: Log-probabilities of the generated tokens, of the stop token that ended them if one did, and of the prompt from
    #: its second token on. None if they were not requested.
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    #: The stop token that ended the text. It is not in `token_ids`.
    stop_id: int | None = None
    #: The logits after the prompt, one for each id. None if they were not requested.
    prompt_logits: tuple[float, ...] | None = None


class LocalModel:
    """A loaded checkpoint with its tokenizer."""

    def __init__(self, engine: Engine, card: Card, tokenizer: Tokenizer | None, warnings: tuple[str, ...]) -> None:
        self._engine = engine
        self.card = card
        self.tokenizer = tokenizer
        #: Warnings about the checkpoint.
        self.warnings = warnings

    @classmethod
    def load(
        cls,
        path_or_name: str,
        root: Path,
        *,
        needs_text: bool = True,
        device: DeviceName = "auto",
        threads: int = 0,
        softcap: float | None = None,
        weights: WeightForm = "exact",
        compute: Compute = "exact",
        prefill_chunk_tokens: int = 256,
        context: int = 0,
        prefix_cache: bool = True,
    ) -> LocalModel:
        """Load a checkpoint by its path, or by its name in the folder `root`.

        Raises CheckpointError (a TokenizerError if `needs_text` and there is no tokenizer). Raises LocalModelError if
        the device is missing or has too little memory.
        """
        folder = find(path_or_name, root)
        tokenizer = _tokenizer(folder, needed=needs_text)
        try:
            loaded = load_model(
                folder,
                tokenizer,
                device=device,
                threads=threads,
                softcap=softcap,
                weights=weights,
                compute=compute,
                slots=1,
                kv_memory_mb=0,
                prefill_chunk_tokens=prefill_chunk_tokens,
                context=context,
                prefix_cache=prefix_cache,
            )
        except (ValueError, MemoryError, RuntimeError) as error:
            # torch raises RuntimeError when the device has no memory left.
            reason = str(error) or type(error).__name__
            raise LocalModelError(f"{folder.name} cannot be loaded: {reason}") from error
        return cls(loaded.engine, loaded.card, tokenizer, loaded.warnings)

    def encode(self, prompt: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The ids of a prompt, and warnings. BOS comes first if the card requires it. Raises LocalModelError."""
        if self.tokenizer is None:
            raise LocalModelError(f"{self.card.name} has no tokenizer: give token ids instead of text")
        try:
            return encode_prompt(self.tokenizer, prompt)
        except PromptError as error:
            raise LocalModelError(str(error)) from error

    def encode_messages(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids of a conversation, up to where its next answer begins.

        Raises LocalModelError if the checkpoint is not a chat model, or if its template refuses the messages.
        """
        if self.tokenizer is None:
            raise LocalModelError(f"{self.card.name} is not a chat model: it has no tokenizer")
        try:
            return render_messages(self.tokenizer, messages, self.card.name)
        except PromptError as error:
            raise LocalModelError(str(error)) from error

    def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        every_id: bool = False,
        tools: bool = False,
        keep_prompt_logits: bool = False,
        on_text: Callable[[str], None] = lambda _: None,
    ) -> Completion:
        """Continue a prompt, and call `on_text` with each new piece of the text.

        `every_id`: ids without text may be sampled, too. `tools`: the model may use its calculator. `max_tokens` is
        reduced to what fits into the context. A KeyboardInterrupt ends the sequence; the model can then be used again.
        Raises LocalModelError, a PromptTooLongError if the prompt leaves no room for an answer.
        """
        request = self._request(
            tuple(prompt_ids), sampling, every_id=every_id, tools=tools, keep_prompt_logits=keep_prompt_logits
        )
        try:
            sequence = self._engine.add_request(request)
        except ValueError as error:
            raise LocalModelError(str(error)) from error
        detokenizer = self._detokenizer(request)
        pieces: list[str] = []
        updates: list[Update] = []

        def add(piece: str) -> None:
            if piece:
                pieces.append(piece)
                on_text(piece)

        try:
            pushed = 0
            while sequence.finish is None:
                updates += self._engine.step().updates
                if detokenizer is not None:
                    for token_id in sequence.tokens[pushed:]:
                        add(detokenizer.push(token_id))
                pushed = len(sequence.tokens)
        finally:
            # After Ctrl-C this ends the sequence, so that the engine can take the next prompt. A sequence that has
            # finished is not affected.
            self._engine.abort(sequence.id)
            while self._engine.has_work:
                self._engine.step()
        if sequence.finish is FinishReason.ERROR:
            reason = "no reason given" if sequence.error is None else sequence.error.message
            raise LocalModelError(f"decoding failed: {reason}")
        if detokenizer is not None:
            add(detokenizer.finish())
        logits = sequence.prompt_logits
        return Completion(
            prompt_ids=request.prompt,
            token_ids=tuple(sequence.tokens),
            text=None if detokenizer is None else "".join(pieces),
            finish_reason=sequence.finish,
            tool_calls=() if detokenizer is None else detokenizer.tool_calls,
            seed=request.sampling.seed or 0,
            logprobs=_unpacked((update.logprobs for update in updates), sampling.logprobs),
            prompt_logprobs=_unpacked((update.prompt_logprobs for update in updates), sampling.prompt_logprobs),
            stop_id=sequence.stop_id,
            prompt_logits=None if logits is None else tuple(logits),
        )

    def _request(
        self,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        *,
        every_id: bool,
        tools: bool,
        keep_prompt_logits: bool,
    ) -> SequenceRequest:
        if self.tokenizer is None and (sampling.stop or sampling.stop_on_newline):
            raise LocalModelError(f"{self.card.name} has no tokenizer, so it cannot stop at a text or a newline")
        try:
            max_tokens = answer_tokens(prompt, sampling.max_tokens, context=self.card.context)
        except PromptError as error:
            kind = PromptTooLongError if error.code is ErrorCode.PROMPT_TOO_LONG else LocalModelError
            raise kind(str(error)) from error
        return SequenceRequest(
            id="local",
            prompt=prompt,
            sampling=replace(sampling.with_seed(), max_tokens=max_tokens),
            every_id=every_id,
            tools=tools,
            keep_prompt_logits=keep_prompt_logits,
        )

    def _detokenizer(self, request: SequenceRequest) -> Detokenizer | None:
        if self.tokenizer is None:
            return None
        sampling = request.sampling
        return Detokenizer(
            self.tokenizer.decoder(request.prompt),
            stop=sampling.stop,
            stop_on_newline=sampling.stop_on_newline,
            min_tokens=sampling.min_tokens or 0,
            tools=tool_content_of(self.tokenizer) if request.tools else None,
        )


def _unpacked(parts: Iterable[bytes], alternatives: int | None) -> tuple[TokenLogprobs, ...] | None:
    return None if alternatives is None else unpack(b"".join(parts), alternatives)


class Description(NamedTuple):
    """What is known of a checkpoint without loading it."""

    #: The card that a CPU worker would publish.
    card: Card
    config: ModelConfig
    #: Warnings for the operator.
    warnings: tuple[str, ...]


def describe(
    path_or_name: str,
    root: Path,
    *,
    softcap: float | None,
    form: WeightForm,
    compute: Compute = "exact",
    context: int = 0,
) -> Description:
    """Describe a checkpoint. `context` limits its own; 0: it does not. Raises CheckpointError."""
    folder = find(path_or_name, root)
    checkpoint = formats.load(folder, softcap=softcap)
    if context:
        checkpoint = formats.with_context(checkpoint, context)
    warnings = checkpoint.warnings
    tokenizer: Tokenizer | None = None
    try:
        tokenizer = load_tokenizer(folder, checkpoint.config.vocab_size)
    except TokenizerError as error:
        warnings += (f"It cannot be served. `celeriac run` can use it with --token-ids: {error}",)
    bytes_per_token = Device("cpu").kv_bytes_per_token(checkpoint.config)
    card = build_card(checkpoint, tokenizer, kv_bytes_per_token=bytes_per_token, form=form, compute=compute)
    return Description(card, checkpoint.config, warnings)


def _tokenizer(folder: CheckpointFolder, *, needed: bool) -> Tokenizer | None:
    try:
        return load_tokenizer(folder, sizes_of(folder).vocab_size)
    except TokenizerError:
        if needed:
            raise
        return None
