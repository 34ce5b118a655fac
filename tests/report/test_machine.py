"""What is written beside a bench's figures."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from raycl.report.machine import write_figures


def test_figures_come_with_versions_machine_and_commit(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_figures(path, {"pairs/s": 1.5}, ["numpy", "no-such-package"])
    content = json.loads(path.read_text())
    assert content["figures"] == {"pairs/s": 1.5}
    assert content["versions"]["numpy"] == version("numpy")
    assert content["versions"]["no-such-package"] is None
    assert content["machine"]["cores"] > 0 and content["machine"]["cpu"]
    commit = content["commit"]
    assert commit is None or set(commit.removesuffix("-dirty")) <= set("0123456789abcdef")
