"""The dictionaries of the original guide, exactly their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class GeneratedText(TypedDict):
    """The answer to a generation."""

    prompt: str
    #: The prompt and its continuation.
    generated_text: str
    #: Tokens of the continuation.
    tokens_generated: int
    #: The checkpoint that generated it.
    model: str


class Health(TypedDict):
    """The health check."""

    #: `ok` while a worker has a model loaded.
    status: str
    model_loaded: bool
    checkpoint: str


class Info(TypedDict):
    """The model information."""

    checkpoint: str
    step: int | None
    val_loss: float | None
    model_layers: int
    model_dim: int
    vocab_size: int


def generated_text(body: Mapping[str, Any]) -> GeneratedText:
    """Of an answer to `POST /generate`. KeyError or TypeError where it is none; so the others."""
    return GeneratedText(
        prompt=body["prompt"],
        generated_text=body["generated_text"],
        tokens_generated=body["tokens_generated"],
        model=body["model"],
    )


def health(body: Mapping[str, Any]) -> Health:
    """Of an answer to `GET /health`."""
    return Health(status=body["status"], model_loaded=body["model_loaded"], checkpoint=body["checkpoint"])


def info(body: Mapping[str, Any]) -> Info:
    """Of an answer to `GET /info`."""
    return Info(
        checkpoint=body["checkpoint"],
        step=body["step"],
        val_loss=body["val_loss"],
        model_layers=body["model_layers"],
        model_dim=body["model_dim"],
        vocab_size=body["vocab_size"],
    )
