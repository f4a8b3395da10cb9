"""The sampling fields of `tasks.sampling_params` as fields of bodies, so that they are declared once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StringConstraints, create_model

from tasks.sampling_params import SAMPLING_FIELDS, SamplingField, SamplingParams

M = TypeVar("M", bound=BaseModel)

_TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "int | None": int | None,
    "float | None": float | None,
}
_TEXTS = "tuple[str, ...]"


def in_request(model: type[M]) -> type[M]:
    """Class decorator: adds the sampling fields as a client may give them, with defaults, bounds and descriptions."""
    return _with(model, _request_field)


def in_job(model: type[M]) -> type[M]:
    """Class decorator: adds the sampling fields as a job has them, each with a value, the seed included."""
    return _with(model, _job_field)


def sampling_of(body: BaseModel) -> SamplingParams:
    """The sampling fields of a body that was made with `in_request`."""
    values = {one.name: getattr(body, one.name) for one in SAMPLING_FIELDS}
    texts = {one.name: tuple(values[one.name] or ()) for one in SAMPLING_FIELDS if one.type == _TEXTS}
    return SamplingParams(**{**values, **texts})


def _with(model: type[M], field: Callable[[SamplingField], tuple[Any, Any]]) -> type[M]:
    fields: dict[str, Any] = {one.name: field(one) for one in SAMPLING_FIELDS}
    return create_model(model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **fields)


def _request_field(one: SamplingField) -> tuple[Any, Any]:
    bounds = {name: bound for name, bound in asdict(one.bounds).items() if bound is not None}
    if one.type == _TEXTS:
        text = Annotated[str, StringConstraints(min_length=1, max_length=bounds.pop("max_item_length"))]
        return list[text] | None, Field(None, description=one.description, **bounds)
    return _TYPES[one.type], Field(one.default, description=one.description, **bounds)


def _job_field(one: SamplingField) -> tuple[Any, Any]:
    if one.name == "seed":
        return int, Field(description="The given seed, or the one that was drawn: it repeats the run.")
    return (list[str] if one.type == _TEXTS else _TYPES[one.type]), ...
