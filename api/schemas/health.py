"""Bodies of the guide's overview and information, and of the health checks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Model


class HealthResponse(Model):
    """The guide's health check."""

    status: Literal["ok", "error"] = Field(description="`ok` while a worker has a model loaded.")
    model_loaded: bool
    checkpoint: str = Field(description="Name of the checkpoint; `unknown` where there is none.")


class InfoResponse(Model):
    """The guide's model information."""

    checkpoint: str
    step: int | None = Field(description="Training step; null where the checkpoint does not tell.")
    val_loss: float | None = Field(
        description="Validation loss in nats per token; null where the checkpoint has none, or none that is finite."
    )
    model_layers: int
    model_dim: int
    vocab_size: int


class RootResponse(Model):
    """The guide's overview."""

    service: str
    version: str
    checkpoint: str
    status: Literal["running", "loading"]
    endpoints: dict[str, str]


class Liveness(Model):
    """The process runs."""

    status: Literal["live"] = "live"


class Readiness(Model):
    """Whether a request would be served now."""

    state: Literal["READY", "BUSY"] = Field(description="BUSY: all slots are taken, new jobs wait.")
    workers: int
    slots: int
    running: int
