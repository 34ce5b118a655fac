"""The section `tune` of a recipe: what a sweep searches, how, and by which metric."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from raycl.sections import Section

Range = tuple[float, float]


class Distribution(Section):
    """Where a field's values are drawn from: one of uniform, loguniform, integers and choice.

    Attributes:
        uniform, loguniform: lowest and highest number.
        integers: lowest and highest, both included.
        choice: values, each as likely as the others.
        when: other searched fields and those of their values with which this one counts; where they
            have others, the recipe's own value stays.
    """

    uniform: Range | None = None
    loguniform: Range | None = None
    integers: tuple[int, int] | None = None
    choice: list[Any] | None = Field(None, min_length=2)
    when: dict[str, list[Any]] = Field({})

    @model_validator(mode="after")
    def _one(self) -> Distribution:
        given = [name for name in ("uniform", "loguniform", "integers", "choice") if self._is(name)]
        if len(given) != 1:
            raise ValueError(
                "a distribution is one of uniform, loguniform, integers ([lowest, highest]) and "
                f"choice (a list); {' and '.join(given) or 'none'} was given"
            )
        bounds = self.uniform or self.loguniform or self.integers
        if bounds and bounds[0] >= bounds[1]:
            raise ValueError(f"{given[0]} is [lowest, highest], {list(bounds)} was given")
        if self.loguniform and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform starts above 0, {self.loguniform[0]:g} was given")
        return self

    def _is(self, name: str) -> bool:
        return getattr(self, name) is not None

    @property
    def bounds(self) -> tuple[float, float] | None:
        return self.uniform or self.loguniform or self.integers

    @property
    def extremes(self) -> list[Any]:
        """Values that show whether a field takes all: each choice, or both ends and one between."""
        if self.choice is not None:
            return self.choice
        if self.integers:
            return [*self.integers]
        low, high = self.uniform or self.loguniform or (0.0, 1.0)
        # No round number: a field for integers takes 4.0, and would not take what is drawn.
        between = low + (high - low) / math.pi
        return [low, between, high]


class Scheduler(Section):
    """Who may go on, by the metric after so many epochs.

    Attributes:
        name: asha (trials are stopped as soon as a rung's worse ones are known), hyperband (waits
            for a bracket to be full), median, pbt and pb2 (the worst take over the best's weights
            and change their fields), or none.
        grace: epochs that every trial gets; with pbt and pb2, between two takeovers.
        factor: of epochs from one rung to the next; one in so many goes on.
    """

    name: Literal["asha", "hyperband", "median", "pbt", "pb2", "none"] = "asha"
    grace: int = Field(1, ge=1, description="epochs before the first verdict, or between takeovers")
    factor: int = Field(3, ge=2, description="one in so many trials reaches the next rung")


class Repeats(Section):
    """The best trials once more with other seeds, so that the winner is not the luckiest one."""

    top: int = Field(3, ge=1, description="trials")
    seeds: int = Field(2, ge=0, description="further ones of each; 0: no repeats")


class Share(Section):
    """What one trial of one worker takes of the cluster."""

    cpus: float | None = Field(None, gt=0, description="null: one, or those that belong to its GPU")
    gpus: float | None = Field(
        None, ge=0, description="a part where trials share one; null: one where there are any"
    )


class Tune(Section):
    """A sweep: many trials of this recipe with other values in some of its fields."""

    metric: str = Field("knn", description="of the run: knn, rank_me, alpha_req, loss, ...")
    mode: Literal["max", "min"] = "max"
    samples: int = Field(24, ge=1, description="trials")
    budget: float | None = Field(None, gt=0, description="minutes, after which the sweep ends")
    scheduler: Scheduler = Scheduler()
    searcher: Literal["random", "grid", "optuna", "bohb"] = "random"
    repeats: Repeats = Repeats()
    share: Share = Share()
    concurrent: int | None = Field(None, ge=1, description="trials at a time; null: what fits")
    retries: int = Field(2, ge=0, description="of a trial whose process, host or storage was lost")
    spaces: list[str] = Field([], description="packaged: temperature, augmentation, ... , method")
    search: dict[str, Distribution] = Field(
        {}, description="dotted field: {uniform: [0.2, 1.2]}, {choice: [...]}, ..."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Tune:
        if self.searcher == "grid":
            for field, distribution in self.search.items():
                if distribution.uniform or distribution.loguniform:
                    raise ValueError(
                        f"searcher=grid needs a choice or integers of every field, "
                        f"{field} has a continuous range"
                    )
        scheduler = self.scheduler.name
        if self.searcher == "bohb" and scheduler != "hyperband":
            raise ValueError(f"searcher=bohb goes with scheduler.name=hyperband, not {scheduler}")
        if scheduler in ("pbt", "pb2") and self.searcher != "random":
            raise ValueError(
                f"scheduler.name={scheduler} finds values by itself: leave searcher=random"
            )
        if scheduler == "pb2" and any(d.choice is not None for d in self.search.values()):
            raise ValueError("scheduler.name=pb2 searches ranges only: take pbt, or no choice")
        return self
