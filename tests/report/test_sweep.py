from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import spearmanr

from raycl.errors import RayclError
from raycl.report import sweep_figures as figures
from raycl.report.frame import duration
from raycl.report.sweep import rank_correlation, write_report
from raycl.report.sweep_statistics import Field, Trend, effects
from raycl.space import Distribution
from raycl.sweep import Row
from tests.report.test_page import Parsed, ink_of

EPOCHS, RUNGS = 9, (1, 3, 9)
SEARCH: dict[str, Any] = {
    "optimizer.weight_decay": {"loguniform": [1e-6, 1e-2]},  # does nothing
    "method.temperature": {"loguniform": [0.03, 1.0]},  # see `quality`
    "method.projector.layers": {"integers": [1, 3]},
    "optimizer.name": {"choice": ["sgd", "adamw", "<b>lars</b>"]},
    "optimizer.momentum": {"uniform": [0.5, 0.99], "when": {"optimizer.name": ["sgd"]}},
    "optimizer.nesterov": {"choice": [False, True]},
    "views.order": {"choice": [["color", "gray", "blur", "solarize"],
                               ["blur", "color", "gray", "solarize"]]},
}  # fmt: skip


def recipe(**tune: Any) -> str:
    content = {
        "method": {"name": "simclr"},
        "optimizer": {"name": "sgd"},
        "trainer": {"stop": {"epochs": EPOCHS}},
        "tune": {"samples": 30, "search": SEARCH, "scheduler": {"factor": 3}} | tune,
    }
    return yaml.safe_dump(content)


def drawn(rng: np.random.Generator) -> dict[str, Any]:
    values: dict[str, Any] = {
        "optimizer.weight_decay": 10 ** rng.uniform(-6, -2),
        "method.temperature": math.exp(rng.uniform(math.log(0.03), 0)),
        "method.projector.layers": int(rng.integers(1, 4)),
        "optimizer.momentum": rng.uniform(0.5, 0.99),
    }
    for name in ("optimizer.name", "optimizer.nesterov", "views.order"):
        choice = SEARCH[name]["choice"]
        values[name] = choice[rng.integers(len(choice))]
    if values["optimizer.name"] != "sgd":
        del values["optimizer.momentum"]
    return {name: values[name] for name in SEARCH if name in values}


class Journal:
    """Events of a sweep whose scores are known; a trial has trained 10 s longer with each epoch."""

    def __init__(self, optimum: float = 0.15, effect: float = 1.0, noise: float = 0.01) -> None:
        self.optimum, self.effect, self.noise = optimum, effect, noise
        self.rng = np.random.default_rng(0)
        self.events: list[dict[str, Any]] = []

    def add(self, event: str, phase: str = "search", **content: Any) -> None:
        at = 1.8e9 + 5 * len(self.events)
        self.events.append({"event": event, "at": at, "phase": phase} | content)

    def quality(self, values: dict[str, Any]) -> float:
        far = math.log10(values["method.temperature"] / self.optimum)
        names = {"sgd": 0.02, "adamw": 0.0, "<b>lars</b>": -0.02}
        score = 0.9 - self.effect * (0.25 * far**2 - names[values["optimizer.name"]])
        return score + self.noise * self.rng.normal()

    def trial(
        self, name: str, epochs: int, how: str | None, phase: str = "search", **more: Any
    ) -> float:
        values = more.pop("values", None) or drawn(self.rng)
        quality = self.quality(values)
        score = 0.0
        self.add("trial", phase, trial=name, values=values, drawn=values, **more)
        for epoch in range(1, epochs + 1):
            score = quality * (1 - 0.3 * math.exp(-epoch / 3))
            record = {"step": 4 * epoch, "epoch": float(epoch), "time": 10.0 * epoch}
            record |= {"loss": 5 - score, "knn": score, "alpha_req": float(self.rng.normal())}
            if epoch % 2:
                record["rank_me"] = 40 * score
            self.add("result", phase, trial=name, run=f"{name}-aa", **record)
        if how:
            self.add("end", phase, trial=name, how=how)
        return score

    def write(self, place: Path, **tune: Any) -> Path:
        place.mkdir(exist_ok=True)
        (place / "recipe.yaml").write_text(recipe(**tune))
        (place / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in self.events))
        return place


def searched(journal: Journal, count: int = 24, stopping: bool = True) -> Journal:
    """Trials of which a scheduler stops a half at the first rung, a third at the second."""
    journal.add("begin")
    for index in range(count):
        rung = RUNGS[(index % 6 > 2) + (index % 6 > 4)] if stopping else EPOCHS
        journal.trial(f"t{index:02d}", rung, "finished" if rung == EPOCHS else "stopped")
    return journal


def whole() -> Journal:
    """A sweep with everything that may happen in it."""
    journal = searched(Journal())
    for name in ("f0", "f1"):
        values = drawn(journal.rng)
        journal.add("trial", trial=name, values=values, drawn=values)
        journal.add("end", trial=name, how="failed", error="<script>batch</script> of 1")
    journal.trial("lost", 3, None)
    journal.add("failure", trial="lost", error="the host went away")
    journal.add("end", trial="lost", how="stopped", error="")
    journal.trial("late", 2, None)
    journal.add("over")
    journal.add("begin", "repeats")
    values = {e["trial"]: e["values"] for e in journal.events if e["event"] == "trial"}
    for trial in ("t05", "t11", "t17"):
        for seed in (1, 2):
            again = {"of": trial, "seed": seed, "values": values[trial]}
            journal.trial(f"{trial}-{seed}", EPOCHS, "finished", "repeats", **again)
    journal.add("over", "repeats")
    return journal


def page_of(journal: Journal, place: Path, **tune: Any) -> str:
    return write_report(journal.write(place, **tune)).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    found = re.search(rf"<h2>{heading}</h2>(.*?)</section>", page, re.DOTALL)
    assert found, heading
    return found[1]


def facts(page: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole().write(tmp_path_factory.mktemp("sweep") / "demo")


@pytest.fixture(scope="module")
def page(place: Path) -> str:
    return write_report(place).read_text(encoding="utf-8")


def results(phase: str = "search") -> dict[str, list[dict[str, Any]]]:
    """What each trial of `whole` measured, in the order of its epochs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in whole().events:
        if event["event"] == "result" and event["phase"] == phase:
            found.setdefault(event["trial"], []).append(event)
    return found


def test_the_page_is_balanced_and_loads_nothing(page: str) -> None:
    loads = Parsed(page).loads
    assert all(load.startswith(("data:", "#")) for load in loads)
    assert re.findall(r"(?i)@import|<script|<iframe|url\((?!#)|https?://", page) == []


def test_text_of_the_sweep_is_escaped(page: str) -> None:
    assert "&lt;b&gt;lars&lt;/b&gt;" in page and "<b>lars" not in page
    assert "&lt;script&gt;batch&lt;/script&gt; of 1" in section(page, "Failures")


def test_the_header_counts_trials_and_time(page: str) -> None:
    found, measured = facts(page), results()
    assert found["State"] == "over"
    assert found["Trials"] == "28: 4 finished, 21 stopped early, 2 failed, 1 cut off"
    both = [*measured.values(), *results("repeats").values()]
    assert found["Training time in all"] == duration(sum(10 * len(each) for each in both))
    assert found["From begin to last event"] == duration(5 * (len(whole().events) - 1))
    assert found["Metric"] == "knn, higher is better"
    assert "<h1>simclr: knn over 28 trials</h1>" in page
    best = max((each[-1]["knn"], name) for name, each in measured.items())
    assert found["Best score"] == f"{100 * best[0]:.3g} %, of {best[1]}"


def test_the_cost_of_the_best_result_is_what_was_spent_until_then(page: str) -> None:
    scores = [event["knn"] for each in results().values() for event in each]
    spent = 10 * (1 + int(np.argmax(scores)))
    words = section(page, "Best score over cost")
    assert f"{len(scores)} results" in words
    assert (
        f"{100 * max(scores):.3g} %, was there after {duration(spent)} of "
        f"{duration(10 * len(scores))}"
    ) in words


def test_epochs_that_are_done_again_and_other_runs_cost_what_they_took(tmp_path: Path) -> None:
    journal = Journal()
    values = drawn(journal.rng)
    journal.add("trial", trial="a", values=values, drawn=values)
    journal.add("trial", trial="b", values=values, drawn=values)
    for trial, epoch, time in (("a", 1, 10), ("b", 1, 7), ("a", 2, 20), ("a", 2, 19), ("a", 3, 29)):
        record: dict[str, Any] = {"epoch": epoch, "time": time, "knn": 0.1 * epoch}
        journal.add("result", trial=trial, run=f"{trial}-aa", **record)
    # a: 10 + 10, and 10 more from the 19 s at which it went on; b: 7.
    assert "was there after 37 s of 37 s" in page_of(journal, tmp_path / "sweep")


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_the_best_so_far_is_drawn_as_steps_over_every_result(mode: str, sign: int) -> None:
    scores = [sign * score for score in (5, 4, 7, 6, 8)]
    svg = figures.cost_curve([10, 20, 30, 40, 60], scores, mode, False)
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--accent\)', svg)
    assert path
    x, y = np.array(re.findall(r"[ML] (\S+) (\S+)", path[1]), float).T
    across, better = (x - x[0]) / np.ptp(x), sign * (y[0] - y) / np.ptp(y)
    corners = {(round(a, 2), round(b, 2)) for a, b in zip(across, better, strict=True)}
    steps = {(0, 0), (0.2, 0), (0.4, 0), (0.4, 0.67), (0.6, 0.67), (1, 0.67), (1, 1)}
    assert corners == steps


def test_of_very_many_results_a_part_is_drawn() -> None:
    many = figures.cost_curve(range(1, 5001), range(5000), "max", False)
    assert many.count("<use") < 1100


def test_trials_are_listed_with_their_values(page: str) -> None:
    rows = Parsed(section(page, "Trials")).rows
    assert rows[0][:5] == ["Trial", "knn", "Epochs", "How", "temperature"]
    assert len(rows) == 21 and "8 more are not listed" in section(page, "Trials")
    listed = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    for event in whole().events:
        if event["event"] != "trial" or event["trial"] not in listed:
            continue
        row, values = listed[event["trial"]], event["values"]
        assert row["temperature"] == f"{values['method.temperature']:.3g}"
        assert row["name"] == values["optimizer.name"]
        assert row["nesterov"] == str(values["optimizer.nesterov"]).lower()
        assert (row["momentum"] == "") == (values["optimizer.name"] != "sgd")
    assert listed["late"]["How"] == "cut off" and listed["t05"]["How"] == "finished"
    assert Parsed(section(page, "Trials")).best[0] == listed["t05"]["knn"]


def row_of(trial: str, score: float, **values: Any) -> Row:
    measured = {1: {"knn": score, "time": 1.0}}
    return Row(trial, values, values, measured, how="finished")


def test_a_field_that_does_not_count_leaves_a_gap_between_the_axes() -> None:
    near = Distribution(uniform=(0, 1))
    fields = [Field.of(name, near, []) for name in ("a.a", "a.b", "a.c")]
    rows = [row_of("x", 0.9, **{"a.a": 0.5, "a.b": 0.5, "a.c": 0.5}),
            row_of("y", 0.1, **{"a.a": 0.1, "a.c": 0.2})]  # fmt: skip
    svg = figures.parallel(fields, rows, "knn", "max")
    path = r'<path d="([^"]*)"[^>]*stroke: color-mix\([^%]*?(\d+)%[^>]*width: ?(\S+?)[;"]'
    lines = re.findall(path, svg)
    by_share = {share: path for path, share, _ in lines}
    assert by_share["100"].count("M") == 1 and by_share["100"].count("L") == 3
    # Nothing from the first axis over the second; only from the third to the score.
    assert by_share["0"].count("L") == 1
    widths = {share: float(width) for _, share, width in lines}
    assert widths["100"] > 2 * widths["0"]


def test_values_lie_on_axes_by_their_distribution() -> None:
    log = Field.of("x", Distribution(loguniform=(0.01, 1)), [])
    assert log.numeric and log.log
    assert [log.place(v) for v in (0.01, 0.1, 1)] == pytest.approx([0, 0.5, 1])
    assert [words for _, words in log.ticks] == ["0.01", "0.1", "1"]
    choice = Field.of("x", Distribution(choice=["a", None, [1, 2]]), [])
    assert not choice.numeric
    assert choice.ticks == [(0, "a"), (0.5, "null"), (1, "1, 2")]
    assert math.isnan(choice.at(row_of("t", 0))) and choice.at(row_of("t", 0, x=None)) == 0.5
    assert not Field.of("x", Distribution(choice=[True, False]), []).numeric
    sizes = Field.of("x", Distribution(choice=[32, 64, 256]), [])
    assert sizes.numeric and sizes.log and sizes.place(64) == 0.5 and sizes.share(64) < 0.4
    beyond = Field.of("x", Distribution(uniform=(0, 1)), [1.2])  # as pbt gives them
    assert beyond.place(1.2) == 1


def test_names_are_short_where_that_is_clear() -> None:
    names = ["method.dim", "views.dim", "views.crop.scale.0"]
    assert [figures.label(name, names) for name in names] == [*names[:2], "crop.scale.0"]


def ranked(page: str) -> dict[str, tuple[float, float]]:
    """Importance and its deviation by field, in the order of the bars."""
    part = section(page, "Importance of the fields")
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", part)
    names = [each for each in texts if each in SEARCH]
    numbers = [each.split(" ± ") for each in texts if "±" in each]
    return {n: (float(a), float(b)) for n, (a, b) in zip(names, numbers, strict=True)}


def test_the_important_field_is_above_the_irrelevant_ones(tmp_path: Path) -> None:
    journal = searched(Journal(), 32, stopping=False)
    page = page_of(journal, tmp_path / "sweep", scheduler={"name": "none"})
    found = ranked(page)
    assert set(found) == set(SEARCH) and next(iter(found)) == "method.temperature"
    mean, deviation = found.pop("method.temperature")
    assert deviation > 0
    for name in ("optimizer.weight_decay", "views.order", "optimizer.nesterov"):
        assert mean - deviation > found[name][0] + found[name][1]
    explained = re.search(r"explains (\d+) % of the variance", page)
    assert explained and 30 < int(explained[1]) < 100
    assert "after epoch 9, the last that 90 % of the measured trials have come to" in page


def test_importances_of_noise_are_said_to_mean_nothing(tmp_path: Path) -> None:
    journal = searched(Journal(effect=0.0), 12, stopping=False)
    part = section(page_of(journal, tmp_path / "sweep"), "Importance of the fields")
    assert "these importances mean nothing" in part and "explains" not in part


def test_importance_finds_what_a_function_depends_on() -> None:
    rng = np.random.default_rng(1)
    x = rng.random((60, 3))
    fields = [Field.of(name, Distribution(uniform=(0.0, 1.0)), []) for name in "abc"]
    found = effects(fields, x, 2 * x[:, 0] + x[:, 1] + 0.05 * rng.normal(size=60), "max")
    mean, deviation = found.importance, found.deviation
    assert found.r2 > 0.8
    assert mean[0] > mean[1] > mean[2] + deviation[2]
    assert abs(mean[2]) < 0.05 and (deviation > 0).all()


@pytest.mark.parametrize(("stopped", "epoch", "count"), [(2, 9, 22), (3, 4, 24)])
def test_trials_are_compared_at_the_last_epoch_that_most_have_come_to(
    tmp_path: Path, stopped: int, epoch: int, count: int
) -> None:
    journal = Journal()
    for index in range(24):
        journal.trial(f"t{index}", 4 if index < stopped else EPOCHS, "finished")
    search = {"views.order": SEARCH["views.order"]}  # without a figure for each field
    journal.write(tmp_path / "sweep", search=search)
    page = write_report(tmp_path / "sweep").read_text()
    said = f"after epoch {epoch}, the last that 90 % of the measured trials have come to: {count}"
    assert said in section(page, "Importance of the fields")
    assert "No field with a range of numbers" in section(page, "Field by field")


TEMPERATURE = Field.of("t", Distribution(loguniform=(0.03, 1.0)), [])


def scattered(seed: int, optimum: float, effect: float = 0.25) -> tuple[list[float], list[float]]:
    """24 temperatures and scores with noise, best at an optimum."""
    rng = np.random.default_rng(seed)
    values = np.exp(rng.uniform(math.log(0.03), 0, 24))
    scores = 0.9 - effect * np.log10(values / optimum) ** 2 + 0.01 * rng.normal(size=24)
    return values.tolist(), scores.tolist()


def trend(values: list[float], scores: list[float], mode: str = "max") -> Trend:
    places = np.array([[TEMPERATURE.place(value)] for value in values])
    return effects([TEMPERATURE], places, np.array(scores), mode).trends["t"]


def test_the_optimum_is_where_it_is_as_often_as_is_said() -> None:
    found = [trend(*scattered(seed, 0.15)) for seed in range(12)]
    assert all("inside the range" in each.verdict for each in found)
    assert all(0.1 < each.best < 0.22 for each in found)
    assert sum(each.span[0] <= 0.15 <= each.span[1] for each in found) >= 9
    assert all(0.01 < each.span[1] - each.span[0] < 0.15 for each in found)
    within = [(each.low <= each.middle) & (each.middle <= each.high) for each in found]
    assert np.all(within)


def test_what_other_fields_do_is_no_noise() -> None:
    """Each of them more than the temperature: a choice, and a number that counts with one of it."""
    values, scores = scattered(0, 0.15)
    rng = np.random.default_rng(1)
    choice, number = rng.integers(2, size=24), rng.random(24)
    x = np.array([[TEMPERATURE.place(value) for value in values], choice, number]).T
    x[choice == 1, 2] = np.nan
    others = np.where(choice == 1, 1.0, -number)
    fields = [
        TEMPERATURE,
        Field.of("optimizer", Distribution(choice=["sgd", "adamw"]), []),
        Field.of("momentum", Distribution(uniform=(0.0, 1.0)), []),
    ]
    found = effects(fields, x, scores + others, "max").trends
    assert "inside the range" in found["t"].verdict and 0.1 < found["t"].best < 0.22
    assert "at the lower end" in found["momentum"].verdict and "optimizer" not in found


@pytest.mark.parametrize(("optimum", "end"), [(5.0, "upper"), (0.006, "lower")])
def test_an_optimum_at_the_end_of_the_range_is_said_to_be_there(optimum: float, end: str) -> None:
    values, scores = scattered(0, optimum)
    found = trend(values, scores)
    assert f"at the {end} end of the range" in found.verdict
    assert found.best == pytest.approx(1.0 if end == "upper" else 0.03)
    lower = trend(values, [-score for score in scores], "min")
    assert lower.verdict == found.verdict


def test_the_best_value_of_an_irrelevant_field_stays_undecided() -> None:
    found = [trend(*scattered(seed, 1.0, 0.0)) for seed in range(8)]
    assert sum(each.verdict == "best value undecided" for each in found) >= 7
    # Most likely somewhere inside, but anywhere.
    inside = replace(found[0], lower=0.05, inside=0.9, upper=0.05)
    assert "undecided" in replace(inside, wide=True).verdict
    assert "inside the range" in replace(inside, wide=False).verdict


def test_every_numeric_field_has_a_figure_and_the_temperature_is_first(page: str) -> None:
    part = section(page, "Field by field")
    captions = re.findall(r"<b>([^<]*)</b> <span>([^<]*)</span>", part)
    numeric = {"optimizer.weight_decay", "method.projector.layers", "optimizer.momentum"}
    assert captions[0][0] == "method.temperature" and "inside the range" in captions[0][1]
    assert {name for name, _ in captions[1:]} == numeric
    assert dict(captions)["optimizer.weight_decay"] == "best value undecided"
    drawn_at = re.findall(r"<svg.*?</svg>", part, re.DOTALL)
    assert ">0.05<" in drawn_at[0] and len(drawn_at) == 4


def test_as_many_trials_reach_an_epoch_as_measured_it_or_a_later_one(page: str) -> None:
    lengths = [len(each) for each in results().values()]
    reached = {epoch: sum(n >= epoch for n in lengths) for epoch in range(1, EPOCHS + 1)}
    assert reached == {1: 26, 2: 14, 3: 13, **dict.fromkeys(range(4, 10), 4)}
    part = section(page, "Rungs")
    assert "Of 28 trials came 26 to epoch 1, 14 to epoch 2, 13 to epoch 3, 4 to epoch 9." in part
    bars = re.findall(r'd="M (\S+) (\S+)\s+L (\S+) (\S+)\s+L (\S+) (\S+)\s+L[^"]*z\s*"', part)
    heights = [float(bar[1]) - float(bar[5]) for bar in bars if float(bar[1]) > float(bar[5])]
    assert len(heights) == EPOCHS
    assert np.array(heights) / heights[0] * 26 == pytest.approx(list(reached.values()), abs=0.2)


def test_learning_curves_have_a_line_a_trial(page: str) -> None:
    lines = re.findall(r'<path d="[^"]*"[^>]*stroke: color-mix', section(page, "Learning curves"))
    assert len(lines) == len(results())


def test_repeats_are_listed_with_their_spread(page: str) -> None:
    rows = Parsed(section(page, "Repeats with other seeds")).rows
    own = results()
    again = [each[-1]["knn"] for name, each in results("repeats").items() if "t05" in name]
    assert rows[1] == [
        "t05",
        f"{100 * own['t05'][-1]['knn']:.3g} %",
        ", ".join(f"{100 * score:.3g} %" for score in again),
        f"{100 * np.mean(again):.3g} % ± {100 * np.std(again, ddof=1):.2g} %",
    ]
    assert {row[0] for row in rows[1:]} == {"t05", "t11", "t17"}
    assert facts(page)["The same with other seeds"] == rows[1][3]


def short(**scores: list[float]) -> Journal:
    """Trials with these scores by epoch, and of one field that is a switch."""
    journal = Journal()
    journal.add("begin")
    for trial, each in scores.items():
        values = {"optimizer.nesterov": len(trial) % 2 == 0}
        journal.add("trial", trial=trial, values=values, drawn=values)
        for epoch, score in enumerate(each, 1):
            record: dict[str, Any] = {
                "epoch": float(epoch),
                "time": 2.0 * epoch,
                "knn": score,
                "loss": 1 + score,
            }
            journal.add("result", trial=trial, run=trial, **record)
    return journal


SWITCH = {"search": {"optimizer.nesterov": SEARCH["optimizer.nesterov"]}}


def test_the_winner_is_bold_by_its_repeats_and_not_by_its_own_score(tmp_path: Path) -> None:
    journal = short(lucky=[0.9], steady=[0.8])
    for trial in ("lucky", "steady"):
        journal.add("end", trial=trial, how="finished", error="")
    journal.add("over")
    for name, of, score in (("r1", "lucky", 0.6), ("r2", "steady", 0.75), ("r3", "steady", 0)):
        journal.add("trial", "repeats", trial=name, values={}, drawn={}, of=of, seed=1)
        if score:
            record: dict[str, Any] = {"epoch": 1.0, "time": 2.0, "knn": score}
            journal.add("result", "repeats", trial=name, run=name, **record)
            journal.add("end", "repeats", trial=name, how="finished", error="")
    page = page_of(journal, tmp_path / "sweep", **SWITCH)
    part = section(page, "Repeats with other seeds")
    assert Parsed(part).rows[1:] == [["steady", "80 %", "75 %", "75 %"],
                                     ["lucky", "90 %", "60 %", "60 %"]]  # fmt: skip
    assert Parsed(part).best == ["80 %", "75 %", "75 %"]
    assert "own score is the best of many and so too good" in part
    assert "Not finished: 1 running" in part
    assert facts(page)["Best score"] == "80 %, of steady" and facts(page)["State"] == "running"


def test_a_metric_that_is_no_share_and_is_minimised(tmp_path: Path) -> None:
    journal = short(a=[0.2, 0.3], bb=[0.4, 0.1])
    page = page_of(journal, tmp_path / "sweep", metric="loss", mode="min", **SWITCH)
    assert facts(page)["Best score"] == "1.1, of bb"
    assert facts(page)["Metric"] == "loss, lower is better"
    assert "The best of all, 1.1, was there after 8 s of 8 s" in page


def test_a_sweep_that_goes_on_says_what_is_missing(tmp_path: Path) -> None:
    journal = short(a=[0.2, 0.3], bb=[0.4])
    place = journal.write(tmp_path / "sweep", **SWITCH)
    with (place / "events.jsonl").open("a") as file:
        file.write('{"event": "result", "trial": "bb", "phase": "sea')
    page = write_report(place).read_text()
    assert facts(page)["State"] == "running"
    assert facts(page)["Trials"] == "2 of 30: 2 running"
    assert "Of 2 trials came 2 to epoch 1, 1 to epoch 2. 2 still run." in page
    assert "Importances need 8 measured trials; there are 2." in page
    assert "There are no repeats with other seeds: none has finished yet." in page
    assert "were not measured in 5 trials" in section(page, "Metrics without labels")
    assert "No trial failed." in section(page, "Failures")
    assert "raycl pretrain best.yaml" in page


@pytest.mark.parametrize("begun", [False, True])
def test_a_sweep_without_a_measurement_still_has_a_page(tmp_path: Path, begun: bool) -> None:
    journal = short(a=[]) if begun else Journal()
    page = page_of(journal, tmp_path / "sweep", repeats={"seeds": 0})
    assert "Best score" not in facts(page) and facts(page)["State"] == "running"
    assert facts(page)["Trials"] == f"{'1 of 30: 1 running' if begun else '0 of 30: none began'}"
    assert "Nothing has been measured yet." in section(page, "Best score over cost")
    trials = section(page, "Trials")
    assert ("No trial has measured knn yet." if begun else "No trial has begun.") in trials
    for heading in ("Importance of the fields", "Field by field", "Learning curves", "Rungs",
                    "Repeats with other seeds", "Metrics without labels",
                    "The winner's recipe"):  # fmt: skip
        assert "No trial has measured knn yet." in section(page, heading)


def test_values_that_change_under_way_have_no_importance(tmp_path: Path) -> None:
    journal = short(a=[0.2, 0.3], bb=[0.4, 0.5])
    page = page_of(journal, tmp_path / "sweep", scheduler={"name": "pbt"}, **SWITCH)
    for heading in ("Importance of the fields", "Field by field"):
        assert "With pbt a trial has several values" in section(page, heading)


def test_metrics_without_labels_are_correlated_with_the_searched_one(page: str) -> None:
    rows = Parsed(section(page, "Metrics without labels")).rows[1:]
    assert rows[0] == ["RankMe", "26", "1.00", "1.00 to 1.00"]
    last = [(-abs(each[-1]["alpha_req"] - 1), each[-1]["knn"]) for each in results().values()]
    assert rows[1][:3] == [
        "alpha-ReQ, nearness to 1",
        "26",
        f"{spearmanr(*zip(*last, strict=True))[0]:.2f}",
    ]
    low, high = map(float, rows[1][3].split(" to "))
    assert low < 0 < high


def test_the_interval_of_a_rank_correlation_narrows_with_more_trials() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    pairs = np.stack([x, x + 0.5 * rng.normal(size=200)], 1)
    rho, low, high = rank_correlation(pairs)
    assert rho == pytest.approx(spearmanr(*pairs.T)[0])
    assert low < rho < high and high - low < 0.2
    _, few, many = rank_correlation(pairs[:20])
    assert many - few > high - low


def test_failures_of_one_kind_are_told_together(page: str) -> None:
    part = section(page, "Failures")
    assert re.findall(r"<b>([^<]*)</b> ([^:]*):", part) == [
        ("f0, f1", "failed"),
        ("lost", "lost and tried again"),
    ]
    assert "the host went away" in part


def test_the_recipe_is_that_of_the_winner(place: Path, page: str) -> None:
    part = section(page, "The winner's recipe")
    text = re.search(r"<pre>(.*)</pre>", part, re.DOTALL)
    assert text and text[1].startswith("# Trial t05 of demo: knn 0.9")
    recipe = yaml.safe_load(text[1])
    (values,) = [e["values"] for e in whole().events if e.get("trial") == "t05" and "values" in e]
    assert recipe["method"]["temperature"] == values["method.temperature"]
    assert "tune" not in recipe or recipe["tune"] is None


def test_a_recipe_that_cannot_be_made_costs_its_section_only(tmp_path: Path) -> None:
    journal = short(a=[0.5])
    journal.events[1]["values"] = {"optimizer.nesterov": "<i>"}
    search = {"optimizer.nesterov": {"choice": ["<i>", True]}}
    page = page_of(journal, tmp_path / "sweep", search=search)
    assert "The recipe of a cannot be made: " in section(page, "The winner's recipe")
    assert "&lt;i&gt;" in section(page, "Trials") and "<i>" not in page


def test_the_same_sweep_gives_the_same_page(place: Path, page: str) -> None:
    assert write_report(place).read_text(encoding="utf-8") == page
    names = sorted(path.name for path in place.iterdir())
    assert names == ["events.jsonl", "recipe.yaml", "report.html"]


def test_a_directory_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match="no sweep's directory"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_renders_it_without_overflow(
    place: Path, page: str, tmp_path: Path, width: int
) -> None:
    ink = ink_of(place / "report.html", width, 5000, tmp_path)
    assert ink.any(axis=1).sum() > 1500
    assert not ink[:, :12].any() and not ink[:, -12:].any()
