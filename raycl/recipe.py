"""The recipe: the typed, validated description of one run.

A recipe is YAML with the sections of `Recipe`; `key=value` overrides set any dotted field. It is
loaded from a packaged name (`simclr/digits`), a path, or a run directory. Two sections are typed by
the method: `method` by its `Config`, `views` by the views that it draws. A field directly under
`views` applies to every view, one under a view's name only to that view.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError

from raycl.errors import RayclError
from raycl.mistakes import explain, explain_one, kind, nearest
from raycl.sections import Data, Evaluation, Optimizer, Section, Trainer
from raycl.space import Tune

if TYPE_CHECKING:
    from raycl.methods.base import DataInfo, Method, Stream
    from raycl.views.packing import View


class RecipeError(RayclError):
    """A recipe that cannot be run: one line for each wrong field."""


class Recipe(Section):
    method: dict[str, Any]
    views: dict[str, Any] = Field(default_factory=dict)
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    trainer: Trainer = Trainer()
    evaluation: Evaluation = Evaluation()
    tune: Tune | None = None
    init_from: str | None = Field(
        None, description="run or .safetensors to start from; of another method's run, its encoder"
    )

    @property
    def method_class(self) -> type[Method]:
        return resolve_method(self.method["name"])

    @property
    def method_config(self) -> Any:
        settings = {key: value for key, value in self.method.items() if key != "name"}
        return self.method_class.Config(**settings)

    @property
    def streams(self) -> dict[str, Stream]:
        """The method's streams with the recipe's `views` applied."""
        streams = self.method_class.views(self.method_config)
        defaults = _views_of(streams)
        views = {
            name: type(view).model_validate(merged)
            for name, view in defaults.items()
            for merged in [_settings(name, defaults, self.views)]
        }
        return {
            name: stream.model_copy(update={"views": {k: views[k] for k in stream.views}})
            for name, stream in streams.items()
        }

    def build(self, data: DataInfo | None = None) -> Method:
        if data:
            data = replace(data, streams=self.streams)
        return self.method_class(self.method_config, data)

    def resolved(self) -> dict[str, Any]:
        """Every field with its value, as plain data; loading it gives the same recipe."""
        plain = self.model_dump(mode="json")
        plain["method"] = {
            "name": self.method["name"],
            **self.method_config.model_dump(mode="json"),
        }
        views = _views_of(self.streams)
        alike = all(_shared(name, views, {"crop": 0}) for name in views)
        own = {name: view.model_dump(mode="json") for name, view in views.items()}
        plain["views"] = _collapse(own) if alike else own
        return plain

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.resolved(), sort_keys=False, default_flow_style=None, width=100)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `change`, section by section; null removes a section."""
    merged = dict(base)
    for key, value in change.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def _views_of(streams: Mapping[str, Stream]) -> dict[str, View]:
    return {name: view for stream in streams.values() for name, view in stream.views.items()}


def _shared(name: str, defaults: Mapping[str, View], views: Mapping[str, Any]) -> dict[str, Any]:
    """What of the fields directly under `views` is meant for one of them.

    Nothing, where other views are drawn from it, or where it masks such a one; of the others, a
    mask has only a size.
    """
    from raycl.views.image import MaskView

    view = defaults[name]
    bases = {getattr(v, "of", None) for v in defaults.values()}
    shared = {key: value for key, value in views.items() if key not in defaults}
    if (view.follows if isinstance(view, MaskView) else name) in bases:
        return {}
    return {k: v for k, v in shared.items() if k == "size" or not isinstance(view, MaskView)}


def _settings(name: str, defaults: Mapping[str, View], views: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of one view of a recipe."""
    default = defaults[name].model_dump()
    return merge(merge(default, _shared(name, defaults, views)), views.get(name) or {})


def _collapse(views: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What all views share, once, and under each view's name what is its own."""
    first = next(iter(views.values()), {})
    shared = {k: v for k, v in first.items() if all(k in w and w[k] == v for w in views.values())}
    own = {n: {k: v for k, v in w.items() if k not in shared} for n, w in views.items()}
    return {**shared, **{name: rest for name, rest in own.items() if rest}}


def resolve_method(name: str) -> type[Method]:
    """A built-in by the name of its file, or any `package.module:Class`."""
    from raycl.methods.base import Method

    module_name, _, class_name = name.partition(":")
    builtin = not class_name
    if builtin:
        known = [p.stem for p in Path(str(resources.files("raycl.methods"))).glob("[!_]*.py")]
        known.remove("base")
        if name not in known:
            raise RecipeError(
                f"method.name: {name!r} is neither a built-in method "
                f"({', '.join(sorted(known))}) nor package.module:Class{nearest(name, known)}"
            )
        module_name = f"raycl.methods.{name}"
    elif "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look where the user stands
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise
        raise RecipeError(
            f"method.name: no module {module_name!r} can be imported from {Path.cwd()}"
        ) from error
    if not builtin:
        found = getattr(module, class_name, None)
        if not (inspect.isclass(found) and issubclass(found, Method)):
            raise RecipeError(f"method.name: {class_name!r} of {module_name} is no raycl Method")
        return found
    return next(
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module_name
    )


def packaged() -> dict[str, Path]:
    """Packaged recipes by name, `simclr/digits` and so on."""
    root = Path(str(resources.files("raycl"))) / "recipes"
    return {
        path.relative_to(root).with_suffix("").as_posix(): path
        for path in sorted(root.rglob("*.yaml"))
    }


def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads and validates a recipe.

    Args:
        source: a packaged name, a YAML file, or a run directory.
        overrides: `dotted.key=value`; values are read as YAML, null removes.

    Raises:
        RecipeError: naming every wrong field, what was given and what is allowed.
    """
    path, known = Path(source), packaged()
    if path.is_dir():
        path = path / "recipe.yaml"
        if not path.is_file():
            raise RecipeError(f"{source}: this directory holds no recipe.yaml, so it is no run")
    elif str(source) in known:
        path = known[str(source)]
    elif not path.is_file():
        raise RecipeError(
            f"unknown recipe {str(source)!r}: neither a packaged recipe, a file, nor a run "
            f"directory{nearest(str(source), known)}; `raycl recipes` lists the packaged ones"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, this is {kind(content)}")
    for override in overrides:
        _override(content, override)
    return validate(content, str(path if path.suffix == ".yaml" else source))


def validate(content: dict[str, Any], origin: str = "recipe") -> Recipe:
    """The recipe of plain data; collects every mistake before it raises."""
    problems: list[str] = []
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems += explain(error, Recipe, ())
    method = content.get("method")
    if isinstance(method, dict):
        problems += _method_problems(method, content.get("views") or {})
    if problems or recipe is None:
        raise RecipeError(f"{origin}:\n" + "\n".join(f"  {line}" for line in problems))
    return recipe


def _method_problems(method: dict[str, Any], views: Any) -> list[str]:
    if not isinstance(method.get("name"), str):
        return ["method.name: missing; give a built-in method or package.module:Class"]
    try:
        cls = resolve_method(method["name"])
    except RecipeError as error:
        return [str(error)]
    settings = {key: value for key, value in method.items() if key != "name"}
    problems: list[str] = []
    try:
        config = cls.Config(**settings)
    except ValidationError as error:
        problems += explain(error, cls.Config, ("method",))
        config = cls.Config.model_construct()  # its defaults will do to check the views
    if not isinstance(views, dict):
        return [*problems, f"views: a mapping of fields is needed, {kind(views)} was given"]
    specs = _views_of(cls.views(config))
    for name, default in specs.items():
        own = views.get(name) or {}
        try:
            type(default).model_validate(_settings(name, specs, views))
        except ValidationError as error:
            for detail in error.errors():
                inside = _reach(own, detail["loc"])
                at = ("views", name) if inside else ("views",)
                line = explain_one(detail, type(default), at, extra=specs if not inside else ())
                problems += [line] if line not in problems else []
    return problems


def _reach(tree: Any, location: Iterable[Any]) -> bool:
    for key in location:
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key or not all(key.split(".")):
        raise RecipeError(f"override {override!r}: write it as dotted.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML") from error
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)  # YAML reads 1e-4, without a dot, as text
    _set(content, key.split("."), value)


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    *sections, last = keys
    here = content
    for name in sections:
        if not isinstance(here.get(name), dict):
            here[name] = {}
        here = here[name]
    here[last] = value


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with other values in some fields, and without its section `tune`.

    Args:
        values: by dotted name; a number as the last part is an element of a list.

    Raises:
        RecipeError: the values do not fit their fields, or do not go together.
    """
    content = recipe.model_dump(mode="json", exclude={"tune"})
    for name, value in values.items():
        _put(content, recipe, name.split("."), value)
    return validate(content)


def _put(content: dict[str, Any], recipe: Recipe, keys: list[str], value: Any) -> None:
    *path, last = keys
    if last.isdigit():  # an element of a list, whose others stay
        elements = _found(content, path) or _found_in_views(recipe, path)
        if not isinstance(elements, list) or int(last) >= len(elements):
            raise RecipeError(f"{'.'.join(keys)}: there is no such element in this recipe")
        value = [*elements[: int(last)], value, *elements[int(last) + 1 :]]
        keys = path
    _set(content, keys, value)


def _found(tree: Any, path: list[str]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _found_in_views(recipe: Recipe, path: list[str]) -> Any:
    """What a field is by default; one directly under `views`, what the first view has."""
    resolved = recipe.resolved()
    places = [path] + [["views", name, *path[1:]] for name in resolved["views"]]
    return next((v for v in (_found(resolved, place) for place in places) if v is not None), None)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str = "") -> list[str]:
    """Dotted fields in which two resolved recipes differ, with both values."""
    lines: list[str] = []
    for key in dict.fromkeys([*old, *new]):
        one, two = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            lines += differences(one, two, f"{at}{key}.")
        elif one != two:
            lines.append(f"{at}{key}: {one!r} there, {two!r} here")
    return lines


def schema(method: str | None = None) -> dict[str, Any]:
    """JSON Schema of recipes; with a method's name its fields are filled in."""
    whole = Recipe.model_json_schema()
    if method:
        cls = resolve_method(method)
        own = cls.Config.model_json_schema(ref_template="#/$defs/{model}")
        whole["$defs"].update(own.pop("$defs", {}))
        own["properties"] = {"name": {"const": method}, **own.get("properties", {})}
        whole["properties"]["method"] = own
    return whole
