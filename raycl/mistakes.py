"""What is wrong with a configuration, in words: one line per field."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], at: tuple[str, ...]) -> list[str]:
    details = error.errors()
    places = [_place(detail, model) for detail in details]
    # Of a field that may be of several types, the type that was meant is the one that got furthest.
    kept = [
        detail
        for detail, place in zip(details, places, strict=True)
        if not detail["type"].endswith("_type")
        or not any(len(p) > len(place) and p[: len(place)] == place for p in places)
    ]
    return list(dict.fromkeys(explain_one(detail, model, at) for detail in kept))


def _place(detail: Any, model: type[BaseModel]) -> tuple[Any, ...]:
    """Where a mistake is, without the names of types that pydantic mixes in."""
    location = detail["loc"]
    if detail["type"] == "string_type" and location[-1:] == ("str",):
        location = location[:-1]
    return _follow(location, model)[0]


def explain_one(
    detail: Any, model: type[BaseModel], at: tuple[str, ...], extra: Iterable[str] = ()
) -> str:
    """One line: dotted field, what was given, what is allowed, the nearest known field."""
    location = _place(detail, model)
    dotted = ".".join([*at, *map(str, location)]) or "recipe"
    if detail["type"] == "extra_forbidden":
        _, section = _follow(detail["loc"][:-1], model)
        fields = [*(section.model_fields if section else ()), *extra]
        where = ".".join([*at, *map(str, location[:-1])]) or "a recipe"
        return (
            f"{dotted}: unknown field{nearest(str(location[-1]), fields)}; "
            f"{where} has: {', '.join(fields)}"
        )
    if detail["type"] == "missing":
        return f"{dotted}: missing, this field is needed"
    if detail["type"] == "union_tag_invalid":
        tag, known = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
        return f"{dotted}.name: {tag!r} was given, allowed is {known}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if detail["type"] == "value_error":
        return f"{dotted}: {message}"
    return f"{dotted}: {detail['input']!r} was given, allowed is {message}"


def _follow(
    location: Iterable[Any], model: type[BaseModel]
) -> tuple[tuple[Any, ...], type[BaseModel] | None]:
    """The fields on the way to a location inside a model, and the model that it is in.

    What pydantic mixes in is left out: the names of types, and the name by which one model of
    several was chosen.
    """
    fields: list[Any] = []
    models = [model]
    for part in location:
        named = [m for m in models if _name(m) == part] if len(models) > 1 else []
        if named:
            models = named
        elif not _is_type(part):
            fields.append(part)
            field = models[0].model_fields.get(str(part)) if models else None
            if field is not None:
                models = [c for c in _types(field.annotation) if issubclass(c, BaseModel)]
    return tuple(fields), models[0] if models else None


def _is_type(part: Any) -> bool:
    return isinstance(part, str) and ("[" in part or part.startswith("constrained-"))


def _name(model: type[BaseModel]) -> Any:
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _types(annotation: Any) -> list[type]:
    """The classes that an annotation is made of."""
    inner = [cls for part in get_args(annotation) for cls in _types(part)]
    return inner or ([annotation] if inspect.isclass(annotation) else [])


def nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
