"""Adds the sampling fields of `tasks.sampling_params` to bodies, so that each field is declared only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, create_model

from tasks.sampling_params import (
    BIASES,
    ID_PATTERN,
    IDS,
    SAMPLING_FIELDS,
    STRINGS,
    SamplingField,
    SamplingParams,
    biases_of,
)

M = TypeVar("M", bound=BaseModel)

#: Names of the members of an object of biases.
_TokenId = Annotated[str, StringConstraints(pattern=ID_PATTERN)]
#: Types in requests and job objects of all fields with one value, by their annotations.
_TYPES: Mapping[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "int | None": int | None,
    "float | None": float | None,
}
#: Types in job objects of the fields with several values.
_JOB_TYPES: Mapping[str, Any] = {
    STRINGS: list[str],
    IDS: list[int],
    BIASES: Annotated[
        dict[str, float], BeforeValidator(lambda pairs: {str(token_id): bias for token_id, bias in pairs})
    ],
}


def in_request(model: type[M]) -> type[M]:
    """Class decorator: adds the sampling fields as requests have them, with defaults, bounds and descriptions."""
    return _with_fields(model, _request_field)


def in_job(model: type[M]) -> type[M]:
    """Class decorator: adds the sampling fields as job objects have them. Each has a value, including the seed."""
    return _with_fields(model, _job_field)


def sampling_of(body: BaseModel) -> SamplingParams:
    """The sampling fields of a body whose class was made with `in_request`."""
    return SamplingParams(**{field.name: _value(field, getattr(body, field.name)) for field in SAMPLING_FIELDS})


def _value(field: SamplingField, given: Any) -> Any:
    if field.type == BIASES:
        return biases_of(given or {})
    return tuple(given or ()) if field.type in (STRINGS, IDS) else given


def _with_fields(model: type[M], definition: Callable[[SamplingField], tuple[Any, Any]]) -> type[M]:
    """A subclass of `model`, under the same name, with the fields. `definition` gives a field's type and default."""
    definitions: dict[str, Any] = {field.name: definition(field) for field in SAMPLING_FIELDS}
    return create_model(
        model.__name__, __base__=model, __module__=model.__module__, __doc__=model.__doc__, **definitions
    )


def _request_field(field: SamplingField) -> tuple[Any, Any]:
    bounds = {name: bound for name, bound in asdict(field.bounds).items() if bound is not None}
    if field.type in _TYPES:
        return _TYPES[field.type], Field(field.default, description=field.description, **bounds)
    of_list = Field(None, description=field.description, max_length=bounds["max_length"])
    of_item = {name.removeprefix("item_"): bounds[name] for name in ("item_ge", "item_le") if name in bounds}
    if field.type == STRINGS:
        text = Annotated[str, StringConstraints(min_length=1, max_length=bounds["max_item_length"])]
        return list[text] | None, of_list
    if field.type == IDS:
        return list[Annotated[int, Field(**of_item)]] | None, of_list
    return dict[_TokenId, Annotated[float, Field(**of_item)]] | None, of_list


def _job_field(field: SamplingField) -> tuple[Any, Any]:
    if field.name == "seed":
        return int, Field(description="The seed of the request, or the one that was drawn. It repeats the draws.")
    return _JOB_TYPES.get(field.type) or _TYPES[field.type], ...
