"""Which values a sweep may give to which fields, and the recipe that a trial's values make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from raycl import recipe as recipes
from raycl.errors import RayclError
from raycl.mistakes import explain, nearest
from raycl.recipe import Recipe, RecipeError
from raycl.space import Distribution, Tune

# What says how trials are measured, or where and how long they run, is the same for all.
_FIXED = (
    *("evaluation", "tune", "init_from", "data.train", "data.test"),
    *(f"trainer.{name}" for name in ("workers", "address", "storage", "seed", "stop", "device")),
)


@dataclass(frozen=True)
class Space:
    """The searched fields of a recipe.

    Attributes:
        recipe: as it is without the search.
        fields: by dotted name.
        skipped: fields of packaged spaces that this recipe has not, or that nothing follows from.
    """

    recipe: Recipe
    fields: dict[str, Distribution]
    skipped: list[str]

    @property
    def tune(self) -> Tune:
        assert self.recipe.tune is not None
        return self.recipe.tune

    def values(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Values by field from what a searcher has drawn: a choice's index, and numbers.

        Fields whose condition does not hold are left out.
        """
        found = {
            name: distribution.choice[int(drawn[name])] if distribution.choice else drawn[name]
            for name, distribution in self.fields.items()
        }
        return {name: value for name, value in found.items() if self._holds(name, found)}

    def _holds(self, name: str, values: Mapping[str, Any]) -> bool:
        return all(values[other] in those for other, those in self.fields[name].when.items())

    def with_values(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe of one trial.

        Raises:
            RecipeError: the values do not go together.
        """
        return recipes.with_values(self.recipe, values)


def space_of(recipe: Recipe) -> Space:
    """The space that a recipe's section `tune` describes, checked.

    Every field is given its extreme values, one field at a time, so that a range which leaves what
    the field allows is found before anything runs.

    Raises:
        RecipeError: all mistakes, one line each.
    """
    if recipe.tune is None:
        raise RecipeError(
            "tune: missing; say what is searched, as tune.spaces=[temperature], or in the recipe "
            "tune: {search: {method.temperature: {loguniform: [0.03, 1]}}}"
        )
    packaged: dict[str, Distribution] = {}
    problems: list[str] = []
    for name in recipe.tune.spaces:
        fields = _packaged(name, recipe.method["name"])
        usable = {f: d for f, d in fields.items() if not _problems(recipe, f, d, fields)}
        if not usable:
            problems.append(f"tune.spaces: {name} has no field that does anything in this recipe")
        packaged |= usable
    asked = {f for name in recipe.tune.spaces for f in _packaged(name, recipe.method["name"])}
    fields = packaged | recipe.tune.search
    if not fields and not problems:
        problems.append("tune.search: give at least one field to search, or a packaged tune.spaces")
    for name, distribution in recipe.tune.search.items():
        problems += _problems(recipe, name, distribution, fields)
    if problems:
        raise RecipeError("tune:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(problems)))
    # Checked again, and kept, with what the packaged spaces have brought in.
    search = {name: distribution.model_dump() for name, distribution in fields.items()}
    try:
        tune = Tune.model_validate(recipe.tune.model_dump() | {"search": search, "spaces": []})
    except ValidationError as error:
        raise RecipeError("\n".join(explain(error, Tune, ("tune",)))) from None
    recipe = recipe.model_copy(update={"tune": tune})
    return Space(recipe, fields, sorted(asked - set(fields)))


def _packaged(name: str, method: str) -> dict[str, Distribution]:
    root = Path(str(resources.files("raycl")))
    shared = {path.stem: path for path in sorted((root / "tune" / "spaces").glob("*.yml"))}
    known = shared | {"method": root / "recipes" / method / "space.yml"}
    if name not in known:
        raise RecipeError(
            f"tune.spaces: {name!r} is none of {', '.join(known)}{nearest(name, known)}"
        )
    if not known[name].is_file():
        raise RecipeError(f"tune.spaces: no space is packaged for the method {method}")
    content = yaml.safe_load(known[name].read_text(encoding="utf-8"))
    return {field: Distribution.model_validate(given) for field, given in content.items()}


def _problems(
    recipe: Recipe, name: str, distribution: Distribution, fields: Mapping[str, Distribution]
) -> list[str]:
    at = f"tune.search.{name}"
    if name.startswith(_FIXED):
        return [f"{at}: is the same for all trials and cannot be searched"]
    condition = {}
    for other, values in distribution.when.items():
        if other not in fields:
            return [f"{at}.when: {other} is not searched{nearest(other, fields)}"]
        condition[other] = values[0]
        allowed = fields[other].choice
        if allowed and any(value not in allowed for value in values):
            return [f"{at}.when.{other}: one of {allowed} is needed, {values} was given"]
    found: list[dict[str, Any]] = []
    for value in distribution.extremes:
        try:
            found.append(recipes.with_values(recipe, condition | {name: value}).resolved())
        except RayclError as error:
            lines = str(error).splitlines()
            return [f"{at}: {value!r} cannot be: {lines[-1].strip()}"]
    if all(other == found[0] for other in found):
        return [f"{at}: changes nothing; a field of its own, further down, says it in this recipe"]
    return []


def as_drawn(config: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's config as plain data: what was `drawn`, and of a repeat also `of` and `seed`."""
    if "again" in config:
        return dict(config["again"])
    return {"drawn": {k: v.item() if hasattr(v, "item") else v for k, v in config.items()}}
