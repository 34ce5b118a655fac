"""The driver of a sweep: the search, then the best trials again with other seeds."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import yaml
from ray import tune
from ray.tune import schedulers
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator

from raycl.data.connect import connected
from raycl.data.folder import Folder
from raycl.errors import RayclError
from raycl.recipe import Recipe
from raycl.sweep import Row, read, trials
from raycl.train.hosts import check_storage, wait_for_room
from raycl.train.resources import per_trial
from raycl.train.run import absolute, make_directory
from raycl.train.signals import STOPS, in_main_thread, kept
from raycl.train.trainer import checked
from raycl.tune import hparams
from raycl.tune.journal import Journal
from raycl.tune.space import Space, space_of
from raycl.tune.trial import Sweep, Trial

FAILURES = 3  # trials that fail for good before any has measured anything end a sweep
ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # data and a user's own method lie where the user stands
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # runs have their own metrics and TensorBoard
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails has none
    "RAY_AIR_NEW_OUTPUT": "0",  # it shows tables at every verbosity
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # see _stoppable
}
WAITING = ("hyperband", "pbt", "pb2")  # schedulers that let trials wait for others
KEPT = 3  # copies of a trial's weights, of which the scheduler may hand on any
DRIVER = 0.001  # CPUs of a trial whose workers train elsewhere


def search(recipe: Recipe, place: Path) -> None:
    """Runs a sweep in its directory, or goes on with the one that is there.

    Raises:
        RayclError: anything about recipe, space or directory that the user can mend, before
            anything is written; or no trial has come to a measurement.
        KeyboardInterrupt: Ctrl-C or SIGTERM, once the state has been saved.
    """
    space, place = space_of(absolute(recipe)), place.absolute()
    if space.tune.metric == "knn" and not recipe.evaluation.every_epochs:
        raise RayclError("tune.metric: knn is measured every evaluation.every_epochs; give 1")
    checked(space.recipe, place)  # as it is, with none of the values that trials will have
    os.environ.update(ENVIRONMENT)
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    environment = {"env_vars": {"PYTHONPATH": path} | ENVIRONMENT}
    # Without the dashboard Ray does not free the places of a group whose trial is stopped.
    local = {"runtime_env": environment, "include_dashboard": True}
    with connected(recipe.trainer.address, **local) as alone:
        at_once = (space.tune.concurrent or 1) * recipe.trainer.group_sizes[0]
        wait_for_room(recipe.trainer, at_once)
        check_storage(recipe.trainer.storage, place)
        share = _share(space)
        settings = {"search_alg": _searcher(space, share), "scheduler": _scheduler(space)}
        _open(place, space)
        if alone and recipe.data.read_on is None and recipe.data.decode_on == "worker":
            data = space.recipe.data.model_copy(update={"read_on": "worker"})
            space = replace(space, recipe=space.recipe.model_copy(update={"data": data}))
        sweep = Sweep(space, place, share.part, share.threads)
        drawn = {name: _domain(d, space.tune.searcher) for name, d in space.fields.items()}
        if space.tune.budget:
            settings["time_budget_s"] = 60 * space.tune.budget
        if space.tune.searcher != "grid":
            settings["num_samples"] = space.tune.samples
        _phase("search", sweep, share, drawn, settings)
        found = trials(read(place), space.tune, "search")
        if not any(row.measured for row in found):
            errors = [row.error for row in found if row.error]
            raise RayclError(f"no trial has measured {space.tune.metric}: {(errors or ['?'])[0]}")
        again = _repeats(space, found)
        if again:
            order = BasicVariantGenerator(max_concurrent=share.fits if share.workers else 0)
            drawn = {"again": tune.grid_search(again)}
            _phase("repeats", sweep, share, drawn, {"search_alg": order})


def _open(place: Path, space: Space) -> None:
    """Makes the directory, with the recipe as it was given.

    With every field resolved, those that several views share could not be searched any more.
    """
    stored = place / "recipe.yaml"
    content = space.recipe.model_dump(mode="json", exclude_unset=True)
    given = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    if stored.is_file():
        if stored.read_text(encoding="utf-8") != given:
            raise RayclError(
                f"{place}: holds the sweep of another recipe; go on with that one by --resume "
                f"{place}, or choose another directory with --sweep"
            )
        return
    make_directory(place, given, "sweep")
    hparams.describe(place, space)


@dataclass(frozen=True)
class Share:
    """Of the cluster, for one trial.

    Attributes:
        resources: what Ray Tune sets aside.
        part: of the cluster, for the workers of a trial that has several.
        threads: of a trial that trains in its own process.
        fits: trials at a time.
        workers: whether a trial has workers elsewhere.
    """

    resources: dict[str, float]
    part: float
    threads: int
    fits: int
    workers: bool


def _share(space: Space) -> Share:
    recipe, wanted = space.recipe, space.tune.share
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in there]
    cpus, gpus = map(sum, zip(*nodes, strict=True))
    workers = recipe.trainer.group_sizes[-1]
    if workers > 1 or recipe.data.decode_on == "cluster":
        most = gpus if gpus and recipe.trainer.device != "cpu" else cpus
        fits = min(space.tune.concurrent or math.inf, max(1, most // workers))
        return Share({"CPU": DRIVER}, 1 / fits, 1, int(fits), True)
    cpu, gpu, room = per_trial(nodes, recipe.trainer.device, wanted.cpus, wanted.gpus)
    if not room:
        raise RayclError(
            f"tune.share: a trial is to have {cpu:g} CPUs and {gpu:g} GPUs, and no node of the "
            f"cluster has them; in all there are {cpus:g} and {gpus:g}"
        )
    fits = min(room, space.tune.concurrent or room)
    return Share({"CPU": cpu, "GPU": gpu}, 1.0, max(1, int(cpu)), fits, False)


def _domain(distribution: Any, searcher: str) -> Any:
    """Where Ray Tune draws from; of a choice the index, which every searcher understands."""
    if distribution.choice:
        indices = list(range(len(distribution.choice)))
        return tune.grid_search(indices) if searcher == "grid" else tune.choice(indices)
    if distribution.integers:
        low, high = distribution.integers
        values = range(low, high + 1)
        return tune.grid_search([*values]) if searcher == "grid" else tune.randint(low, high + 1)
    if distribution.loguniform:
        return tune.loguniform(*distribution.loguniform)
    return tune.uniform(*distribution.uniform)


def _searcher(space: Space, share: Share) -> Any:
    name, seed = space.tune.searcher, space.recipe.trainer.seed
    try:
        if name == "optuna":
            from ray.tune.search.optuna import OptunaSearch

            return ConcurrencyLimiter(OptunaSearch(seed=seed), share.fits)
        if name == "bohb":
            from ray.tune.search.bohb import TuneBOHB

            return ConcurrencyLimiter(TuneBOHB(seed=seed), share.fits)
    except (ImportError, AssertionError) as error:
        wanted = "hpbandster ConfigSpace" if name == "bohb" else "optuna"
        raise RayclError(f"tune.searcher: for {name}, pip install {wanted}") from error
    # Of trials that train in their own process as many run as have room, and others may wait.
    limit = share.fits if share.workers or space.tune.concurrent else 0
    if limit and space.tune.scheduler.name in WAITING and space.tune.samples > limit:
        raise RayclError(
            f"tune.samples: with scheduler {space.tune.scheduler.name} all {space.tune.samples} "
            f"trials of several workers have to run at once, and {limit} do; take as many, or "
            "trainer.workers=1"
        )
    return BasicVariantGenerator(random_state=seed, max_concurrent=limit)


def _scheduler(space: Space) -> Any:
    settings, most = space.tune.scheduler, space.recipe.trainer.stop.epochs
    if settings.name == "asha":
        return schedulers.AsyncHyperBandScheduler(
            "epoch", max_t=most, grace_period=settings.grace, reduction_factor=settings.factor
        )
    if settings.name == "hyperband":
        kind = schedulers.HyperBandScheduler
        if space.tune.searcher == "bohb":
            kind = schedulers.HyperBandForBOHB
        return kind("epoch", max_t=most, reduction_factor=settings.factor)
    if settings.name == "median":
        return schedulers.MedianStoppingRule("epoch", grace_period=settings.grace)
    if settings.name == "pbt":
        mutations = {name: _domain(d, "random") for name, d in space.fields.items()}
        return schedulers.PopulationBasedTraining(
            "epoch",
            perturbation_interval=settings.grace,
            hyperparam_mutations=mutations,
            require_attrs=False,
            log_config=False,
        )
    if settings.name == "pb2":
        return PB2(
            "epoch",
            perturbation_interval=settings.grace,
            hyperparam_bounds={name: [*(d.bounds or ())] for name, d in space.fields.items()},
            require_attrs=False,
            log_config=False,
        )
    return schedulers.FIFOScheduler()


def _phase(
    phase: str, sweep: Sweep, share: Share, drawn: dict[str, Any], settings: dict[str, Any]
) -> None:
    """One Ray Tune experiment, from its beginning or from where it was left."""
    space, journal = sweep.space, Journal(sweep.place / "events.jsonl", sweep.space, phase)
    over = [e for e in read(sweep.place) if e["event"] == "over" and e["phase"] == phase]
    if over:
        return
    folder = Folder(space.recipe.trainer.storage or str(sweep.place)) / "ray"
    trial = tune.with_resources(tune.with_parameters(Trial, sweep=sweep), share.resources)
    if tune.Tuner.can_restore((folder / phase).where):
        tuner = tune.Tuner.restore((folder / phase).where, trial, param_space=drawn)
    else:
        tuner = tune.Tuner(
            trial,
            param_space=drawn,
            tune_config=tune.TuneConfig(
                metric=space.tune.metric,
                mode=space.tune.mode,
                reuse_actors=True,
                **settings,
            ),
            run_config=tune.RunConfig(
                name=phase,
                storage_path=folder.where,
                # A copy of the weights each, which only those need that take over or wait.
                checkpoint_config=tune.CheckpointConfig(num_to_keep=KEPT, checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=space.tune.retries),
                stop=Hopeless(),
                callbacks=[journal],
                verbose=0,
            ),
        )
    with _stoppable() as stopped:
        tuner.fit()
    if stopped:
        raise KeyboardInterrupt
    journal.write("over")


class Hopeless(tune.Stopper):
    """Ends a sweep whose first trials all fail for good: something is wrong with all of them."""

    def __init__(self) -> None:
        self._failed = 0
        self._measured = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._measured |= "record" in result
        self._failed += "failed" in result
        return False

    def stop_all(self) -> bool:
        return self._failed >= FAILURES and not self._measured


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM has Ray Tune save its state and stop; the second ends at once.

    Yields the signals that came.
    """
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        stopped.append(number)
        if len(stopped) > 1:
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGUSR1)  # what Ray Tune listens to beside SIGINT

    with kept():
        for number in STOPS if in_main_thread() else ():
            signal.signal(number, stop)
        yield stopped


def _repeats(space: Space, found: list[Row]) -> list[dict[str, Any]]:
    """The best trials with other seeds, as Ray Tune is to run them."""
    settings, first = space.tune.repeats, space.recipe.trainer.seed + 1
    return [
        {"of": row.trial, "drawn": row.drawn, "seed": seed}
        for row in found[: settings.top]
        if row.measured
        for seed in range(first, first + settings.seeds)
    ]
