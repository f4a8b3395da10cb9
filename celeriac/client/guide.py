"""The dictionaries that the original guide defines, with exactly its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class GeneratedText(TypedDict):
    """The result of a generation."""

    prompt: str
    #: The prompt and its continuation.
    generated_text: str
    #: Number of tokens in the continuation.
    tokens_generated: int
    #: The checkpoint that generated the text.
    model: str


class Health(TypedDict):
    """The result of the health check."""

    #: `ok` if a worker has loaded a model.
    status: str
    model_loaded: bool
    checkpoint: str


class Info(TypedDict):
    """Information about a checkpoint."""

    checkpoint: str
    step: int | None
    val_loss: float | None
    model_layers: int
    model_dim: int
    vocab_size: int


def generated_text(body: Mapping[str, Any]) -> GeneratedText:
    """Parse the JSON of `POST /generate`. Raises KeyError or TypeError if it is something else."""
    return GeneratedText(
        prompt=body["prompt"],
        generated_text=body["generated_text"],
        tokens_generated=body["tokens_generated"],
        model=body["model"],
    )


def health(body: Mapping[str, Any]) -> Health:
    """Parse the JSON of `GET /health`. Raises KeyError or TypeError if it is something else."""
    return Health(status=body["status"], model_loaded=body["model_loaded"], checkpoint=body["checkpoint"])


def info(body: Mapping[str, Any]) -> Info:
    """Parse the JSON of `GET /info`. Raises KeyError or TypeError if it is something else."""
    return Info(
        checkpoint=body["checkpoint"],
        step=body["step"],
        val_loss=body["val_loss"],
        model_layers=body["model_layers"],
        model_dim=body["model_dim"],
        vocab_size=body["vocab_size"],
    )
