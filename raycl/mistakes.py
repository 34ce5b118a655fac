"""What is wrong with a configuration, in words: one line per field."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], at: tuple[str, ...]) -> list[str]:
    details = error.errors()
    places = [_place(detail) for detail in details]
    # Of a field that may be of several types, the type that was meant is the one that got furthest.
    kept = [
        detail
        for detail, place in zip(details, places, strict=True)
        if not detail["type"].endswith("_type")
        or not any(len(p) > len(place) and p[: len(place)] == place for p in places)
    ]
    return list(dict.fromkeys(explain_one(detail, model, at) for detail in kept))


def _place(detail: Any) -> tuple[Any, ...]:
    """Where a mistake is, without the names of types that pydantic mixes in."""
    location = detail["loc"]
    if detail["type"] == "string_type" and location[-1:] == ("str",):
        location = location[:-1]
    return tuple(part for part in location if not _is_type(part))


def _is_type(part: Any) -> bool:
    return isinstance(part, str) and ("[" in part or part.startswith("constrained-"))


def explain_one(
    detail: Any, model: type[BaseModel], at: tuple[str, ...], extra: Iterable[str] = ()
) -> str:
    """One line: dotted field, what was given, what is allowed, the nearest known field."""
    location = _place(detail)
    dotted = ".".join([*at, *map(str, location)]) or "recipe"
    if detail["type"] == "extra_forbidden":
        fields = [*_fields(model, location[:-1]), *extra]
        where = ".".join([*at, *map(str, location[:-1])]) or "a recipe"
        return (
            f"{dotted}: unknown field{nearest(str(location[-1]), fields)}; "
            f"{where} has: {', '.join(fields)}"
        )
    if detail["type"] == "missing":
        return f"{dotted}: missing, this field is needed"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        return f"{dotted}: {message}"
    return f"{dotted}: {detail['input']!r} was given, allowed is {message}"


def _fields(model: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """Names of the fields of the model at a location inside a model."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        nested = [c for c in _types(field.annotation) if issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _types(annotation: Any) -> list[type]:
    """The classes that an annotation is made of."""
    inner = [cls for part in get_args(annotation) for cls in _types(part)]
    return inner or ([annotation] if inspect.isclass(annotation) else [])


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
