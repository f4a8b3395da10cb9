"""Adds the sampling fields of `tasks.sampling_params` to bodies, so that each field is declared only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StringConstraints, create_model

from tasks.sampling_params import SAMPLING_FIELDS, SamplingField, SamplingParams

M = TypeVar("M", bound=BaseModel)

#: The annotation of a field with several strings, which is a list in JSON.
_STRINGS = "tuple[str, ...]"
#: Types of all other fields, by their annotations.
_TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "int | None": int | None,
    "float | None": float | None,
}


def in_request(model: type[M]) -> type[M]:
    """Class decorator: adds the sampling fields as requests have them, with defaults, bounds and descriptions."""
    return _with_fields(model, _request_field)


def in_job(model: type[M]) -> type[M]:
    """Class decorator: adds the sampling fields as job objects have them. Each has a value, including the seed."""
    return _with_fields(model, _job_field)


def sampling_of(body: BaseModel) -> SamplingParams:
    """The sampling fields of a body whose class was made with `in_request`."""
    values = {field.name: getattr(body, field.name) for field in SAMPLING_FIELDS}
    strings = {field.name: tuple(values[field.name] or ()) for field in SAMPLING_FIELDS if field.type == _STRINGS}
    return SamplingParams(**{**values, **strings})


def _with_fields(model: type[M], definition: Callable[[SamplingField], tuple[Any, Any]]) -> type[M]:
    """A subclass of `model`, under the same name, with the fields. `definition` gives a field's type and default."""
    definitions: dict[str, Any] = {field.name: definition(field) for field in SAMPLING_FIELDS}
    return create_model(
        model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **definitions
    )


def _request_field(field: SamplingField) -> tuple[Any, Any]:
    bounds = {name: bound for name, bound in asdict(field.bounds).items() if bound is not None}
    if field.type == _STRINGS:
        string = Annotated[str, StringConstraints(min_length=1, max_length=bounds.pop("max_item_length"))]
        return list[string] | None, Field(None, description=field.description, **bounds)
    return _TYPES[field.type], Field(field.default, description=field.description, **bounds)


def _job_field(field: SamplingField) -> tuple[Any, Any]:
    if field.name == "seed":
        return int, Field(description="The seed of the request, or the one that was drawn. It repeats the draws.")
    return (list[str] if field.type == _STRINGS else _TYPES[field.type]), ...
