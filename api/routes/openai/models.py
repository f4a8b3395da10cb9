"""`GET /v1/models` and `GET /v1/models/{id}`: the checkpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from api.http.openapi import QUEUE_CODES, openai_errors
from api.http.problems import Code
from api.http.strict_json import StrictRoute
from api.jobs.catalog import CatalogSnapshot
from api.schemas.openai.models import ServedModel, ServedModels
from api.services import ServicesDep
from tasks.card import Card

router = APIRouter(route_class=StrictRoute, prefix="/v1/models", tags=["openai"])

#: The owner of every checkpoint.
OWNER = "celeriac"


@router.get("", response_model=ServedModels, summary="List checkpoints", responses=openai_errors(QUEUE_CODES))
async def models(services: ServicesDep) -> ServedModels:
    """All checkpoints that a worker has served or offers: first those that are loaded, then those that can be."""
    snapshot = await services.catalog.snapshot()
    loaded = {counts.checkpoint for counts in snapshot.serving()}
    cards = sorted(
        snapshot.cards.values(),
        key=lambda card: (card.name not in loaded, card.name not in snapshot.offered, card.name),
    )
    return ServedModels(data=[_model(card, snapshot, loaded=card.name in loaded) for card in cards])


@router.get(
    "/{model}",
    response_model=ServedModel,
    summary="Read a checkpoint",
    responses=openai_errors((*QUEUE_CODES, Code.MODEL_NOT_FOUND, Code.MODEL_NOT_LOADED)),
)
async def model(services: ServicesDep, model: Annotated[str, Path(description="Name of a checkpoint.")]) -> ServedModel:
    """One checkpoint, also while no worker serves it. The name of a run means its last checkpoint."""
    card = await services.catalog.describe(model)
    snapshot = services.catalog.last_snapshot
    return _model(card, snapshot, loaded=bool(snapshot.serving(card.name)))


def _model(card: Card, snapshot: CatalogSnapshot, *, loaded: bool) -> ServedModel:
    return ServedModel(
        id=card.name,
        created=0,
        owned_by=OWNER,
        root=card.name,
        max_model_len=card.context,
        ready=loaded or card.name in snapshot.offered,
        loaded=loaded,
        latest_of=card.latest_of or None,
        chat=card.tokenizer.chat is not None,
        default_sampling=None if card.default_sampling is None else dict(card.default_sampling),
    )
