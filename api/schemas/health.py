"""Bodies of the health checks, and of the guide's overview and model information."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Model


class HealthResponse(Model):
    """The guide's health check."""

    status: Literal["ok", "error"] = Field(description="`ok` while a worker has a model loaded.")
    model_loaded: bool
    checkpoint: str = Field(description="Name of the checkpoint; `unknown` if there is none.")


class InfoResponse(Model):
    """The guide's model information."""

    checkpoint: str
    step: int | None = Field(description="Training step; null if the checkpoint does not contain it.")
    val_loss: float | None = Field(
        description="Validation loss in nats per token; null if the checkpoint has no finite one."
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
    """Liveness: the process runs."""

    status: Literal["live"] = "live"


class Readiness(Model):
    """Readiness: requests are served now."""

    state: Literal["READY", "BUSY"] = Field(description="BUSY: all slots are in use, so new jobs wait.")
    workers: int
    slots: int
    running: int
