"""The recipe: the typed, validated description of one run.

A recipe is YAML with the sections below; `key=value` overrides set any dotted field. It is loaded
from a packaged name (`simclr/digits`), a path, or a run directory. Two sections are typed by the
method: `method` by its `Config`, `views` by the views that it draws. A field directly under `views`
applies to every view, one under a view's name only to that view.
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
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from raycl.data import storage
from raycl.errors import RayclError
from raycl.mistakes import explain, explain_one, kind, nearest

if TYPE_CHECKING:
    from raycl.methods.base import DataInfo, Method, Stream
    from raycl.views.image import ImageView, MaskView


class RecipeError(RayclError):
    """A recipe that cannot be run: one line for each wrong field."""


Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(Section):
    """One data set of a mixture."""

    path: str | list[str] = Field(description="shard, directory, glob, URI, or list of them")
    share: float = Field(1.0, gt=0, description="of every batch, next to those of the others")

    @property
    def paths(self) -> list[str]:
        return self.path if isinstance(self.path, list) else [self.path]


class Data(Section):
    """Where samples come from, in which order, and who decodes them."""

    train: str | list[str] | dict[str, Part] | None = Field(
        None, description="shard, directory, glob, URI (s3://...), list of them; or named parts"
    )
    test: str | list[str] | None = Field(None, description="held-out set that protocols score on")
    limit: int | None = Field(None, ge=1, description="use only the first samples of train")
    indices: str | None = Field(None, description=".npy of sample ids of train to use")
    fraction: float | None = Field(
        None, gt=0, le=1, description="of every class's samples of train, by the seed: few labels"
    )
    test_indices: str | None = Field(None, description=".npy of sample ids of test to score on")
    weights: str | None = Field(None, description=".npy of sampling weights, one per sample used")
    pairs: str | None = Field(None, description=".npy (M, 2) of sample ids that travel together")
    balance: str | None = Field(
        None, description="field whose values occur equally often; 'method': its pseudo-labels"
    )
    order: Literal["random", "pages", "sequential"] = Field(
        "random", description="pages: whole pages, mixed over a window, for remote or large data"
    )
    window: int = Field(64, ge=1, description="pages that a lane mixes; only with order=pages")
    engine: Literal["raycl", "ffcv"] = Field(
        "raycl", description="ffcv: FFCV's own Loader, whose crops no seed reaches"
    )
    threads: int = Field(1, ge=1, description="decoding threads of one worker")
    corrupt: Literal["error", "substitute"] = Field(
        "error", description="a sample that cannot be decoded: stop, or use its neighbour and count"
    )
    corrupt_share: float = Field(
        0.01, ge=0, le=1, description="of a lane's samples, how many may be replaced"
    )
    read_on: Literal["cluster", "worker"] = Field(
        "cluster",
        description="cluster: in tasks of Ray Data on any node; worker: each worker reads what it "
        "trains on",
    )
    decode_on: Literal["worker", "cluster", "gpu"] = Field(
        "worker",
        description="cluster: in Ray Data actors on other nodes, which ship uint8 crops; gpu: by "
        "nvJPEG on the worker's GPU",
    )
    decode_actors: int = Field(4, ge=1, description="the most actors; only with decode_on=cluster")
    decode_nodes: dict[str, str] | None = Field(
        None, description="labels of the nodes of these actors, as {tier: cpu}"
    )
    cache_gb: float = Field(20, ge=0, description="a node's disk cache of remote pages, in GB")

    @field_validator("train", "test", mode="after")
    @classmethod
    def _without_credentials(cls, value: Any) -> Any:
        parts = value.values() if isinstance(value, dict) else [value]
        paths = [getattr(part, "path", part) for part in parts]
        for path in paths:
            for uri in path if isinstance(path, list) else [path]:
                if uri and storage.is_uri(uri):
                    try:
                        storage.checked(uri)
                    except RayclError as error:
                        raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Data:
        ways = [name for name in ("weights", "balance") if getattr(self, name)]
        ways += ["order"] if self.order != "random" else []
        ways += ["train (of parts)"] if isinstance(self.train, dict) else []
        if len(ways) > 1:
            raise ValueError(
                f"{' and '.join(ways)} each decide how samples are drawn: give one of them"
            )
        if self.engine == "ffcv" and self.decode_on != "worker":
            raise ValueError("engine=ffcv decodes in the workers: leave decode_on=worker")
        if self.read_on == "worker" and self.decode_on == "cluster":
            raise ValueError("decode_on=cluster takes what the cluster reads: leave read_on out")
        subset = [n for n in ("limit", "indices", "pairs", "fraction") if getattr(self, n)]
        if isinstance(self.train, dict) and subset:
            raise ValueError(f"{subset[0]} cannot choose among parts of a mixture: leave it out")
        if self.fraction and self.pairs:
            raise ValueError("fraction draws single samples: leave pairs or fraction out")
        return self


class Optimizer(Section):
    """How parameters move. `lr` is multiplied by batch/256 (linear) or sqrt(batch) (sqrt)."""

    name: Literal["lars", "sgd", "adam", "adamw"] = "lars"
    lr: float = Field(0.3, gt=0)
    lr_scaling: Literal["none", "linear", "sqrt"] = "linear"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(1e-6, ge=0)
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_epochs: float = Field(10, ge=0)
    clip: float | None = Field(None, gt=0, description="bound on the gradient's global norm")
    per: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="other values for one of several optimizers, by its name"
    )

    def of(self, name: str) -> Optimizer:
        """The settings of one of a method's optimizers."""
        return Optimizer(**{**self.model_dump(exclude={"per"}), **self.per.get(name, {})})


class Patience(Section):
    """Stop when `metric` has not improved for `epochs` epochs; the best weights are restored."""

    metric: str = "loss"
    epochs: int = Field(20, ge=1)
    mode: Literal["min", "max"] = "min"


class Stop(Section):
    epochs: int = Field(100, ge=1)
    steps: int | None = Field(
        None, ge=1, description="stop after so many steps, if that is earlier"
    )
    patience: Patience | None = None
    divergence: bool = Field(
        False, description="stop when the loss diverges, at the last good checkpoint; false: warn"
    )


class Best(Section):
    """A metric of the run, such as knn, and whether the highest or the lowest value is best."""

    metric: str
    mode: Literal["min", "max"] = "max"


class Checkpoint(Section):
    every_epochs: int = Field(1, ge=1)
    keep: int = Field(2, ge=1, description="the newest that stay")
    best: Best | None = Field(None, description="the best by a metric stays as well")


class Trainer(Section):
    """Who computes. The global batch is `lanes * batch`, on any number of workers."""

    workers: Count | tuple[Count, Count] = Field(
        1, description="a number, or [least, most]: the group shrinks and grows with the cluster"
    )
    lanes: int = Field(1, ge=1, description="virtual devices; workers must divide them")
    batch: int = Field(256, ge=1, description="samples of one lane")
    lanes_at_once: int | None = Field(
        None, ge=1, description="lanes in memory at a time; losses are accumulated exactly"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    compile: bool = Field(False, description="by torch.compile, which takes minutes first")
    sharded: bool = Field(
        False, description="encoders that one device has no room for are spread over the workers"
    )
    nccl: dict[str, str] = Field(
        {}, description="what NCCL shall know on every worker: {NCCL_SOCKET_IFNAME: eth0}"
    )
    address: str | None = Field(
        None, description="Ray cluster to run on, 'auto' for this machine's"
    )
    storage: str | None = Field(
        None, description="URI or directory that all hosts reach, for checkpoints and run files"
    )
    seed: int = Field(0, ge=0)
    stop: Stop = Stop()
    checkpoint: Checkpoint = Checkpoint()
    log_every: int = Field(10, ge=1, description="steps between two logged ones")
    watch: list[Literal["wandb", "mlflow"]] = Field(
        [], description="services that are told of the run, beside TensorBoard"
    )

    @property
    def group_sizes(self) -> list[int]:
        """The numbers of workers that a group may have, ascending: those that divide the lanes."""
        least, most = self.workers if isinstance(self.workers, tuple) else (self.workers,) * 2
        return [n for n in range(least, most + 1) if self.lanes % n == 0]

    @field_validator("nccl")
    @classmethod
    def _of_nccl(cls, settings: dict[str, str]) -> dict[str, str]:
        for name in settings:
            if not name.startswith(("NCCL_", "TORCH_NCCL_")):
                raise ValueError(f"{name} is no setting of NCCL: NCCL_..., TORCH_NCCL_...")
        return settings

    @model_validator(mode="after")
    def _divide(self) -> Trainer:
        given = self.workers if isinstance(self.workers, int) else list(self.workers)
        if isinstance(given, list) and given[0] > given[1]:
            raise ValueError(f"workers={given}: give [least, most]")
        if not self.group_sizes:
            fits = [n for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise ValueError(
                f"workers={given} does not divide lanes={self.lanes}; "
                f"allowed numbers of workers: {', '.join(map(str, fits))}"
            )
        for size in self.group_sizes:
            if self.lanes_at_once and (self.lanes // size) % self.lanes_at_once:
                raise ValueError(
                    f"lanes_at_once={self.lanes_at_once} does not divide the "
                    f"{self.lanes // size} lanes of a worker"
                )
        return self


class Knn(Section):
    k: int = Field(200, ge=1)
    temperature: float = Field(0.07, gt=0)


Protocol = Literal[
    "knn",
    "linear",
    "linear-sgd",
    "classifier",
    "dense",
    "localization",
    "backgrounds",
    "geometry",
]


class Dense(Section):
    ignore: int | None = Field(
        255, ge=0, le=255, description="label of pixels without a class; null: all have one"
    )


class Evaluation(Section):
    """How the encoder is measured, during the run and after it."""

    every_epochs: int = Field(0, ge=0, description="online kNN every so many epochs; 0: never")
    protocols: list[Protocol] = ["knn", "linear"]
    knn: Knn = Knn()
    dense: Dense = Dense()
    few: list[int] = Field([], description="labels a class of the few-label rows")
    size: int | None = Field(None, ge=8, description="side of the images; null: that of the views")
    batch: int = Field(512, ge=1)


class Recipe(Section):
    method: dict[str, Any]
    views: dict[str, Any] = {}
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    trainer: Trainer = Trainer()
    evaluation: Evaluation = Evaluation()
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


def _views_of(streams: Mapping[str, Stream]) -> dict[str, ImageView | MaskView]:
    return {name: view for stream in streams.values() for name, view in stream.views.items()}


def _shared(
    name: str, defaults: Mapping[str, ImageView | MaskView], views: Mapping[str, Any]
) -> dict[str, Any]:
    """What of the fields directly under `views` is meant for one of them.

    Nothing, where other views are drawn from it, or where it masks such a one; of the others, a
    mask has only a size.
    """
    from raycl.views.image import MaskView

    view = defaults[name]
    bases = {v.of for v in defaults.values() if not isinstance(v, MaskView)}
    shared = {key: value for key, value in views.items() if key not in defaults}
    if (view.follows if isinstance(view, MaskView) else name) in bases:
        return {}
    return {k: v for k, v in shared.items() if k == "size" or not isinstance(view, MaskView)}


def _settings(
    name: str, defaults: Mapping[str, ImageView | MaskView], views: Mapping[str, Any]
) -> dict[str, Any]:
    """All fields of one view of a recipe."""
    default = defaults[name].model_dump()
    return merge(merge(default, _shared(name, defaults, views)), views.get(name) or {})


def _collapse(views: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What all views share, once, and under each view's name what is its own."""
    first = next(iter(views.values()))
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
    *sections, last = key.split(".")
    here = content
    for name in sections:
        if not isinstance(here.get(name), dict):
            here[name] = {}
        here = here[name]
    here[last] = value


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
