"""Bodies of `GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.base import Model


class ServedModel(Model):
    """A checkpoint."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Always 0: when a checkpoint was made is not known.")
    owned_by: str
    root: str = Field(description="The same as `id`.")
    parent: None = None
    max_model_len: int = Field(description="Longest sequence in tokens, prompt and answer together.")
    ready: bool = Field(
        description="Whether a worker serves it now, or loads it when a call needs it. A call for one that is not "
        "ready is refused."
    )
    loaded: bool = Field(description="Whether a worker has it loaded and takes jobs for it.")
    latest_of: str | None = Field(
        description="Another name by which calls may name it, as long as it is the last checkpoint of that run."
    )
    chat: bool = Field(description="Whether `/v1/chat/completions` works with it.")
    default_sampling: dict[str, float] | None = Field(
        description="Sampling fields that calls get where they do not set them. null: OpenAI's defaults."
    )


class ServedModels(Model):
    """The checkpoints."""

    object: Literal["list"] = "list"
    data: list[ServedModel]
