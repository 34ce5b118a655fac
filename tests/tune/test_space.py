"""Search spaces: ranges are checked against the fields before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raycl import recipe as recipes
from raycl.recipe import Recipe, RecipeError, load, with_values
from raycl.tune.space import space_of

METHODS = sorted({name.partition("/")[0] for name in recipes.packaged()})


def searching(recipe: str = "simclr/cifar10-small", **tune: Any) -> Recipe:
    return recipes.validate(load(recipe).model_dump(exclude={"tune"}) | {"tune": tune})


@pytest.mark.parametrize(
    ("field", "distribution", "told"),
    [
        ("method.temperature", {"uniform": [-1, 1]}, "-1.0 was given, allowed is greater than 0"),
        ("method.temprature", {"uniform": [0.1, 1]}, "did you mean 'temperature'?"),
        ("views.color.strength", {"uniform": [0.2, 3]}, "3.0 was given, allowed is less than or"),
        ("trainer.batch", {"uniform": [8, 64]}, "allowed is a valid integer"),
        ("trainer.batch", {"integers": [0, 64]}, "0 was given, allowed is greater than or equal"),
        ("optimizer.name", {"choice": ["sgd", "adamm"]}, "'adamm' was given, allowed is"),
        ("trainer.seed", {"integers": [0, 9]}, "is the same for all trials"),
        ("evaluation.knn.k", {"integers": [1, 9]}, "is the same for all trials"),
        ("views.crop.scale.2", {"uniform": [0.1, 1]}, "there is no such element"),
        ("optimizer.momentum", {"uniform": [0, 0.9], "when": {"optimizer.name": ["sgd"]}},
         "when: optimizer.name is not searched"),
    ],
)  # fmt: skip
def test_a_range_that_leaves_what_a_field_allows_is_refused(
    field: str, distribution: dict[str, Any], told: str
) -> None:
    with pytest.raises(RecipeError) as error:
        space_of(searching(search={field: distribution}))
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith(f"tune.search.{field}") and told in line


@pytest.mark.parametrize(
    ("tune", "told"),
    [
        ({"search": {"method.temperature": {"uniform": [1, 0.1]}}}, "is [lowest, highest]"),
        ({"search": {"method.temperature": {"loguniform": [0, 1]}}}, "starts above 0"),
        ({"search": {"method.temperature": {}}}, "none was given"),
        ({"search": {"trainer.batch": {"integers": [1, 2], "choice": [1, 2]}}},
         "integers and choice was given"),
        ({"searcher": "grid", "search": {"method.temperature": {"uniform": [0.1, 1]}}},
         "has a continuous range"),
        ({"searcher": "bohb", "search": {}}, "goes with scheduler.name=hyperband"),
        ({"searcher": "optuna", "scheduler": {"name": "pbt"}}, "leave searcher=random"),
        ({"scheduler": {"name": "pb2"}, "search": {"trainer.batch": {"choice": [1, 2]}}},
         "ranges only"),
        ({"scheduler": {"name": "ahsa"}}, "tune.scheduler.name"),
    ],
)  # fmt: skip
def test_a_sweep_that_contradicts_itself_is_refused(tune: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=".") as error:
        searching(**tune)
    assert told in str(error.value) and "tune" in str(error.value)


def test_what_a_view_has_of_its_own_cannot_be_searched_for_all() -> None:
    with pytest.raises(RecipeError, match=r"tune\.search\.views\.blur\.p: changes nothing"):
        space_of(searching("byol/cifar10-small", search={"views.blur.p": {"uniform": [0, 1]}}))
    space_of(searching("byol/cifar10-small", search={"views.view1.flip": {"uniform": [0, 1]}}))


def test_nothing_to_search_is_refused() -> None:
    with pytest.raises(RecipeError, match="tune: missing"):
        space_of(load("simclr/digits"))
    with pytest.raises(RecipeError, match="give at least one field"):
        space_of(searching())


@pytest.mark.parametrize("method", METHODS)
def test_packaged_spaces_fit_the_packaged_recipes(method: str) -> None:
    """Of every method that has one: its own; of those that see images, the others."""
    names = [name for name in recipes.packaged() if name.startswith(f"{method}/")]
    own = Path(recipes.__file__).with_name("recipes") / method / "space.yml"
    for name in names:
        spaces = ["optimization", *(["method"] if own.exists() else [])]
        if load(name).streams.get("images"):
            spaces.append("augmentation")
        space = space_of(searching(name, spaces=spaces))
        assert "optimizer.lr" in space.fields
        if own.exists():
            wanted = set(yaml.safe_load(own.read_text()))
            assert wanted - set(space.skipped), f"{name}: nothing of {own} is searched"


def test_the_packaged_augmentations_are_all_searched() -> None:
    space = space_of(searching(spaces=["temperature", "augmentation"]))
    assert set(space.fields) == {
        "method.temperature",
        "views.crop.scale.0",
        "views.color.strength",
        "views.gray",
        "views.blur.p",
        "views.solarize.p",
        "views.order",
    }
    assert space.skipped == ["method.small"]  # SimCLR has no small views


def test_values_reach_the_recipe_and_conditions_hold() -> None:
    space = space_of(
        searching(
            search={
                "optimizer.name": {"choice": ["sgd", "adamw"]},
                "optimizer.momentum": {"uniform": [0, 0.9], "when": {"optimizer.name": ["sgd"]}},
                "views.crop.scale.0": {"uniform": [0.1, 0.5]},
                "trainer.batch": {"integers": [32, 64]},
            }
        )
    )
    drawn = {
        "optimizer.name": 0,
        "optimizer.momentum": 0.5,
        "views.crop.scale.0": 0.3,
        "trainer.batch": 48,
    }
    sgd = with_values(space.recipe, space.values(drawn))
    assert (sgd.optimizer.name, sgd.optimizer.momentum, sgd.trainer.batch) == ("sgd", 0.5, 48)
    crops = {view.crop.scale for view in sgd.streams["images"].views.values() if view.crop}
    assert crops == {(0.3, 1.0)} and sgd.tune is None
    adamw = with_values(space.recipe, space.values(drawn | {"optimizer.name": 1}))
    assert adamw.optimizer.momentum == space.recipe.optimizer.momentum != 0.5
    assert "optimizer.momentum" not in space.values(drawn | {"optimizer.name": 1})
