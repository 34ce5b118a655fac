"""Recipes: every mistake is one readable line; what is loaded can be written and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from raycl import recipe as recipes
from raycl.recipe import RecipeError, load


@pytest.mark.parametrize("name", list(recipes.packaged()))
def test_packaged_recipes_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load(path).resolved() == recipe.resolved()
    assert load(tmp_path).resolved() == recipe.resolved()


def test_overrides_reach_every_section() -> None:
    recipe = load(
        "simclr/digits",
        [
            "method.temperature=0.2",
            "views.color.strength=0.3",
            "views.view2.flip=0.5",
            "optimizer.lr=1e-4",
            "trainer.stop.epochs=3",
            "data.train=[a.beton, b.beton]",
        ],
    )
    assert recipe.method_config.temperature == 0.2
    views = recipe.streams["images"].views
    assert {v.color.strength for v in views.values() if v.color} == {0.3}
    assert views["view1"].flip == 0.0 and views["view2"].flip == 0.5
    assert recipe.optimizer.lr == 1e-4
    assert recipe.trainer.stop.epochs == 3
    assert recipe.data.train == ["a.beton", "b.beton"]


def test_a_shared_view_field_still_reaches_all_views_after_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(load("simclr/digits", ["views.view2.flip=0.5"]).to_yaml())
    again = load(path, ["views.color.strength=0.1"])
    views = again.streams["images"].views
    assert [v.color.strength for v in views.values() if v.color] == [0.1, 0.1]
    assert [v.flip for v in views.values()] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.temprature=0.2", ["method.temprature: unknown field", "'temperature'"]),
        ("method.temperature=0", ["method.temperature: 0 was given", "greater than 0"]),
        ("method.encoder.depth=19", ["method.encoder.depth: 19 was given", "18, 34, 50 or 101"]),
        ("method.encoder.dept=18", ["method.encoder.dept: unknown field", "'depth'"]),
        ("method.encoder=18", ["method.encoder: 18 was given"]),
        ("method.encoder.name=resnext", ["encoder.name: 'resnext' was given", "'vit', 'timm'"]),
        (
            "method.encoder={name: vit, depth: 18}",
            ["encoder.depth: unknown", "has: name, size, patch"],
        ),
        ("method.encoder={name: vit, patch: 0}", ["method.encoder.patch: 0 was given"]),
        (
            "method.encoder={name: vit, image: 100}",
            ["encoder: image=100 is no multiple of patch=16"],
        ),
        ("method.encoder={name: timm}", ["method.encoder.model: missing"]),
        ("method.name=simcrl", ["method.name: 'simcrl'", "did you mean 'simclr'"]),
        ("method.name=no.such:Thing", ["method.name: no module 'no.such'"]),
        ("method.name=json:loads", ["method.name: 'loads' of json is no raycl Method"]),
        ("trainer.wrokers=2", ["trainer.wrokers: unknown field", "'workers'"]),
        ("trainer.workers=3", ["trainer: workers=3 does not divide lanes=2", "1, 2"]),
        ("trainer.stop.epoch=3", ["trainer.stop.epoch: unknown field", "'epochs'"]),
        ("optimizer.lr=fast", ["optimizer.lr: 'fast' was given", "number"]),
        ("views.colour.strength=1", ["views.colour: unknown field", "'color'"]),
        ("views.color.strenght=1", ["views.color.strenght: unknown field", "'strength'"]),
        ("views.view2.flop=1", ["views.view2.flop: unknown field", "'flip'"]),
        ("views.color.strength=-1", ["views.color.strength: -1 was given"]),
        ("dta.train=x", ["dta: unknown field", "'data'"]),
        ("nonsense", ["write it as dotted.key=value"]),
    ],
)
def test_every_mistake_names_field_and_remedy(override: str, expected: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load("simclr/digits", [override])
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("{depth: 18, width: 8, stem: cifar}", {"name": "resnet", "width": 8, "dilate": True}),
        ("{name: resnet, output_stride: 8}", {"name": "resnet", "depth": 50, "output_stride": 8}),
        ("{name: vit, size: tiny}", {"name": "vit", "patch": 16, "recompute": False}),
        ("{name: timm, model: resnet10t}", {"name": "timm", "model": "resnet10t", "options": {}}),
    ],
)
def test_backbones_survive_a_round_trip(
    encoder: str, expected: dict[str, object], tmp_path: Path
) -> None:
    if "timm" in encoder:
        pytest.importorskip("timm")
    recipe = load("simclr/digits", [f"method.encoder={encoder}"])
    resolved = recipe.resolved()["method"]["encoder"]
    assert expected.items() <= resolved.items()
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load(path).resolved() == recipe.resolved()
    assert load(path).method_config.encoder == recipe.method_config.encoder


def test_an_unknown_timm_model_names_close_ones() -> None:
    pytest.importorskip("timm")
    with pytest.raises(RecipeError, match=r"method\.encoder\.model: timm .*'resnet26x'; did you"):
        load("simclr/digits", ["method.encoder={name: timm, model: resnet26x}"])


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load("simclr/digits", ["method.temperature=0", "trainer.batch=0", "views.flip=2"])
    for field in ("method.temperature", "trainer.batch", "views.flip"):
        assert field in str(caught.value)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown recipe 'simclr/digit'; .*simclr/digits|digits"):
        load("simclr/digit")


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(RecipeError, match="a mapping of sections, this is a list"):
        load(path)
    path.write_text("a: [1")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load(path)
    with pytest.raises(RecipeError, match="holds no recipe.yaml"):
        load(tmp_path)


def test_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_method.py").write_text(
        "from raycl.methods import SimCLR\n"
        "class Mine(SimCLR):\n"
        "    class Config(SimCLR.Config):\n"
        "        strength: float = 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = load("simclr/digits", ["method.name=my_method:Mine", "method.strength=2"])
    assert recipe.method_class.__name__ == "Mine"
    assert recipe.method_config.strength == 2.0


def test_schema_knows_the_methods_fields() -> None:
    whole = recipes.schema("simclr")
    assert whole["properties"]["method"]["properties"]["temperature"]["exclusiveMinimum"] == 0
    assert "Optimizer" in whole["$defs"]


def test_differences_name_dotted_fields() -> None:
    old = load("simclr/digits").resolved()
    new = load("simclr/digits", ["method.temperature=0.3"]).resolved()
    assert recipes.differences(old, new) == ["method.temperature: 0.5 there, 0.3 here"]


def test_packaged_recipes_begin_with_a_comment_that_says_what_they_are() -> None:
    for path in recipes.packaged().values():
        assert path.read_text().startswith("# ")
        assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(
    "field", ["data.train=s3://me:pass@bucket/x", "data.test=https://host/x.beton?sig=pass"]
)
def test_a_uri_with_credentials_is_refused_and_not_repeated(field: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.(train|test): .*credentials") as caught:
        load("simclr/digits", [field])
    assert "pass" not in str(caught.value)


def test_ways_to_draw_samples_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match="balance and order each decide how samples are drawn"):
        load("simclr/digits", ["data.balance=label", "data.order=pages"])
    with pytest.raises(RecipeError, match="limit cannot choose among parts of a mixture"):
        load("simclr/digits", ["data.train.a.path=x", "data.train.b.path=y", "data.limit=3"])


def test_a_mixture_by_dotted_fields() -> None:
    recipe = load("simclr/digits", ["data.train.a.path=x", "data.train.a.share=2"])
    assert recipe.resolved()["data"]["train"] == {"a": {"path": "x", "share": 2.0}}


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.train.a.pth=x", "data.train.a.pth: unknown field; did you mean 'path'?"),
        ("data.train={a: {path: x, share: -1}}", "data.train.a.share: -1 was given, allowed is"),
        ("data.train=[3]", "data.train.0: 3 was given, allowed is a valid string"),
    ],
)
def test_a_wrong_data_set_is_told_by_the_type_that_was_meant(override: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load("simclr/digits", [override])
    assert line in str(caught.value)
    assert "valid list" not in str(caught.value) and "data.train.str" not in str(caught.value)
