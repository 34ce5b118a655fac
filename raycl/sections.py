"""The sections of a recipe that every method shares: data, optimizer, trainer, evaluation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raycl.data import storage
from raycl.errors import RayclError

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
    classes: str | None = Field(
        None, description="embeddings of the classes in the order of their labels, for zero-shot"
    )
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
    read_on: Literal["cluster", "worker"] | None = Field(
        None,
        description="cluster: in tasks of Ray Data on any node; worker: each worker reads what it "
        "trains on; left out: worker where the run starts a Ray of its own on this machine",
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
    wait_minutes: float = Field(
        0, ge=0, description="for a cluster that grows to have room for the fewest workers"
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
    "detection",
    "zero_shot",
    "nodes",
    "graphs",
    "clusters",
    "dense",
    "localization",
    "backgrounds",
    "geometry",
]


class Dense(Section):
    ignore: int | None = Field(
        255, ge=0, le=255, description="label of pixels without a class; null: all have one"
    )


class ZeroShot(Section):
    """Classifiers of seen and unseen classes, of which the method makes up features."""

    samples: int = Field(100, ge=1, description="made up for a class; the classifiers' batch, too")
    epochs: int = Field(25, ge=1, description="of the classifier of all classes")


class Nodes(Section):
    """Logistic regressions on the nodes of a graph."""

    runs: int = Field(50, ge=2, description="regressions that start from different weights")
    weight_decay: float = Field(0.0, ge=0, description="0.01 for Citeseer, as published")
    split: Literal["stored", "paper"] = Field(
        "stored",
        description="paper: the first 140 nodes, scored on 500 to 1,499; MVGRL's 86.8 on Cora is "
        "of these in the order of cora.content",
    )


class Evaluation(Section):
    """How the encoder is measured, during the run and after it."""

    every_epochs: int = Field(0, ge=0, description="online kNN every so many epochs; 0: never")
    protocols: list[Protocol] = ["knn", "linear"]
    knn: Knn = Knn()
    dense: Dense = Dense()
    zero_shot: ZeroShot = ZeroShot()
    nodes: Nodes = Nodes()
    few: list[int] = Field([], description="labels a class of the few-label rows")
    size: int | None = Field(None, ge=8, description="side of the images; null: that of the views")
    batch: int = Field(512, ge=1)
