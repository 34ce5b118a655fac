from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycl.errors import RayclError
from raycl.report import write_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
RECIPE = """\
method: {name: simclr, temperature: 0.5}
data: {train: digits/<train>, test: digits/test}
optimizer: {name: adamw}
trainer: {workers: 2, lanes: 4, batch: 64, seed: 3}
"""
ROWS = [
    ("raw pixels", "all", "knn", 0.9831),
    ("raw pixels", "10 a class", "knn", 0.8842),
    ("trained encoder", "all", "knn", 0.9722),
    ("trained encoder", "all", "linear", 0.9778),
    ("trained encoder", "10 a class", "knn", 0.9333),
]
MISSING = {
    "recipe.yaml": "There is no recipe.yaml",
    "metrics.jsonl": "There is no metrics.jsonl",
    "evaluation.json": "There is no evaluation.json",
    "embedding.npz": "There is no embedding.npz",
    "views.png": "There is no views.png",
}


def fill(run: Path) -> Path:
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(0, 100, 10):
            entry = {
                "step": step,
                "epoch": step / 10,
                "time": 8.0 * step,
                "loss": 5 - step / 50,
                "lr": 0.001,
                "images_per_second": 1500.0,
                "wait_share": 0.0412,
                "wait_share/read": 0.0012,
                "wait_share/decode": 0.04,
                "embedding_std": 0.12,
                "rank_me": 40.0,
            }
            file.write(json.dumps(entry | ({"knn": 0.875} if step == 50 else {})) + "\n")
    rows = [
        {"train": 1437 if labels == "all" else 100, "test": 360}
        | {"representation": name, "labels": labels, "protocol": protocol}
        | {"metric": "accuracy", "score": accuracy}
        for name, labels, protocol, accuracy in ROWS
    ]
    (run / "evaluation.json").write_text(
        json.dumps({"seed": 3, "command": "raycl evaluate x", "commit": "abc1234", "rows": rows})
    )
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(size=(60, 8)) + 6 * labels[:, None]
    classes = json.dumps(["ant", "<bee>", "cat"])
    np.savez(
        run / "embedding.npz",
        features=features.astype(np.float32),
        labels=labels,
        classes=np.array(classes),
    )
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(run / "views.png")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = fill(tmp_path_factory.mktemp("report") / "demo")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """Checks that tags are balanced; keeps attributes that make a browser load, cells and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.rows: list[list[str]] = []
        self.best: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
            if name in values:
                self.loads.append(str(values[name]))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.in_best = tag == "td" and values.get("class") == "best"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
            if self.in_best:
                self.best.append(data)


def test_the_page_is_balanced_and_loads_nothing(page: str) -> None:
    loads = Parsed(page).loads
    assert any(load.startswith("data:image/png;base64,") for load in loads)
    assert all(load.startswith(("data:", "#")) for load in loads)
    assert re.findall(r"(?i)@import|<script|<iframe|url\((?!#)|https?://", page) == []


def test_the_table_is_pivoted_and_marks_the_best_of_each_column(page: str) -> None:
    parsed = Parsed(page)
    assert parsed.rows == [
        ["Representation", "all labels (1,437)", "10 a class (100)"],
        ["kNN", "linear", "kNN"],
        ["raw pixels", "98.3", "", "88.4"],
        ["trained encoder", "97.2", "97.8", "93.3"],
    ]
    assert parsed.best == ["98.3", "97.8", "93.3"]
    assert "on 360 test samples" in page


@pytest.mark.parametrize(
    "fact",
    [
        "simclr on digits/&lt;train&gt;",
        "256 in 4 lanes",
        "12 min 00 s",
        "1,500 images/s",
        "abc1234",
    ],
)
def test_the_header_says_what_the_run_is(page: str, fact: str) -> None:
    assert fact in page[: page.index("Scores</h2>")]


def test_every_curve_is_there_with_its_last_value(page: str) -> None:
    values = re.findall(r"<b>([^<]*)</b>.*?<output>([^<]*)</output>", page)
    assert dict(values) == {
        "Loss": "3.2",
        "Online kNN": "87.5 %",
        "Learning rate": "0.001",
        "RankMe": "40",
        "Embedding std": "0.12",
        "Images per second": "1,500",
        "Waiting for data": "4.12 %",
    }
    assert "Not recorded" not in page


def test_the_waiting_curve_says_what_was_waited_for(page: str) -> None:
    assert "share of the time; in the mean read 0.1 %, decode 4.0 %" in page


def test_the_picture_and_the_recipe_are_in_the_page(run: Path, page: str) -> None:
    assert base64.b64encode((run / "views.png").read_bytes()).decode() in page
    assert "data: {train: digits/&lt;train&gt;, test: digits/test}" in page
    assert "<details>" in page


def test_the_legend_names_the_classes(page: str) -> None:
    assert re.findall(r"</i>([^<]*)</li>", page) == ["ant", "&lt;bee&gt;", "cat"]


@pytest.mark.parametrize("absent", sorted(MISSING))
def test_a_missing_input_costs_its_section_only(tmp_path: Path, absent: str) -> None:
    run = fill(tmp_path / "run")
    (run / absent).unlink()
    page = write_report(run).read_text(encoding="utf-8")
    words = " ".join(Parsed(page).words)
    assert MISSING[absent] in words
    assert not any(line in words for name, line in MISSING.items() if name != absent)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("recipe.yaml", b"\xff\xfe", "recipe.yaml cannot be read"),
        ("metrics.jsonl", b'{"step": 1, "lo', "holds no logged step"),
        ("metrics.jsonl", b"\xff\xfe", "metrics.jsonl cannot be read"),
        ("evaluation.json", b"{}", "not what `raycl evaluate` writes (KeyError: 'rows')"),
        ("evaluation.json", b'{"rows": [', "not what `raycl evaluate` writes"),
        ("evaluation.json", b'{"rows": []}', "no protocol was run"),
        ("embedding.npz", b"PK", "embedding.npz cannot be read"),
        ("views.png", b"GIF89a", "not a PNG"),
    ],
)
def test_an_unreadable_input_costs_its_section_only(
    tmp_path: Path, name: str, content: bytes, line: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).write_bytes(content)
    page = write_report(run).read_text(encoding="utf-8")
    assert line in " ".join(Parsed(page).words)


def test_a_recipe_that_is_no_yaml_is_still_shown(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: [")
    assert "<pre>method: [</pre>" in write_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"features": np.full((9, 2), np.nan)}, "NaN or infinity"),
        ({"features": np.ones((2, 2))}, "nothing to draw"),
        ({"features": np.ones((9, 2)), "labels": np.zeros(8, int)}, "9 features and 8 labels"),
    ],
)
def test_an_embedding_that_cannot_be_drawn_says_why(
    tmp_path: Path, arrays: dict[str, Any], line: str
) -> None:
    np.savez(tmp_path / "embedding.npz", **arrays)
    assert line in write_report(tmp_path).read_text(encoding="utf-8")


def test_each_of_several_optimizers_has_its_curves(tmp_path: Path) -> None:
    lines = [
        {"step": i, "critic.loss": 2.0 - i, "critic.lr": 0.1, "generator.loss": 5.0 * i,
         "generator.lr": 0.3}
        for i in (1, 2)
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = write_report(tmp_path).read_text()
    for heading in ("Loss, critic", "Loss, generator", "Learning rate, generator"):
        assert f"<b>{heading}</b>" in page
    assert "Not recorded: online knn" in page and "<b>Loss</b>" not in page


def test_curves_that_were_not_recorded_are_named(tmp_path: Path) -> None:
    entries = [{"step": step, "loss": 1.0, "lr": 0.1, "knn": float("nan")} for step in range(3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, entries)))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert (
        "Not recorded: online knn, RankMe, embedding std, images per second, waiting for data."
        in page
    )


def test_a_step_logged_again_after_a_resume_counts_once_and_last(tmp_path: Path) -> None:
    losses = [(0, 9.0), (10, 8.0), (20, 7.5), (10, 8.25), (20, 4.5)]
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in losses]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 30, "lo']))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<output>4.5</output>" in page
    assert page.count("<use") == 3


def test_the_same_run_gives_the_same_page(run: Path, page: str) -> None:
    assert write_report(run).read_text(encoding="utf-8") == page
    assert sorted(path.name for path in run.iterdir()) == sorted([*MISSING, "report.html"])


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RayclError, match="is not the directory of a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def ink_of(page: Path, width: int, height: int, folder: Path) -> np.ndarray:
    """Which pixels of a page in a browser differ from its paper, (height, width)."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    picture = folder / "page.png"
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}"),
        *(f"--screenshot={picture}", f"--window-size={width},{height}"),
        page.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("L"), int)
    assert pixels.shape == (height, width)
    return np.abs(pixels - pixels[0, 0]) > 16


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_renders_it_without_overflow(run: Path, tmp_path: Path, width: int) -> None:
    ink = ink_of(run / "report.html", width, 2600, tmp_path)
    assert ink.any(axis=1).sum() > 700
    assert not ink[:, :12].any() and not ink[:, -12:].any()
