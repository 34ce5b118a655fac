"""The command line as a user meets it: what it prints, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from raycl.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the command in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["raycl", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
        sys.exit(0)
    code = ended.value.code
    return code if isinstance(code, int) else 0


Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "simclr/digit"], "unknown recipe 'simclr/digit'"),
        (["pretrain", "simclr/digits", "trainer.wrokers=1"], "trainer.wrokers: unknown field"),
        (["pretrain", "simclr/digits", "method.temperature=0"], "method.temperature: 0 was given"),
        (["pretrain", "simclr/digits"], "data.train: missing"),
        (["pretrain", "simclr/digits", "data.train=/nowhere"], "there is no such"),
        (["pretrain"], "RECIPE is missing"),
        (["pretrain", "simclr/digits", "--resume", "x"], "leave RECIPE out"),
        (["pretrain", "--resume", "/nowhere"], "unknown recipe '/nowhere'"),
        (["evaluate", "/nowhere"], "/nowhere"),
        (["report", "/nowhere"], "holds no recipe.yaml"),
        (["data", "info", "/nowhere"], "there is no such"),
        (["data", "import", "npz", "out"], "SRC OUT is needed"),
        (["data", "import", "imagefolder", "/nowhere", "/tmp/never"], "/nowhere"),
        (["nonsense"], "No such command"),
    ],
)
def test_mistakes_are_one_message_and_status_2(
    monkeypatch: Patch, capsys: Captured, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and "Traceback" not in shown.err
    assert not list(tmp_path.iterdir())


def test_recipes(monkeypatch: Patch, capsys: Captured) -> None:
    assert run(monkeypatch, "recipes") == 0
    assert "simclr/cifar10-small" in capsys.readouterr().out
    assert run(monkeypatch, "recipes", "show", "simclr/digits", "method.temperature=0.25") == 0
    assert "temperature: 0.25" in capsys.readouterr().out
    assert run(monkeypatch, "recipes", "schema", "--method", "simclr") == 0
    assert (
        "temperature" in json.loads(capsys.readouterr().out)["properties"]["method"]["properties"]
    )


def test_data_commands(monkeypatch: Patch, capsys: Captured, tmp_path: Path) -> None:
    out = str(tmp_path / "digits")
    assert run(monkeypatch, "data", "import", "digits", out, "--shard-samples", "700") == 0
    assert "1437 samples in 3 shards" in capsys.readouterr().out
    assert run(monkeypatch, "data", "info", f"{out}/train") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 1437
    assert run(monkeypatch, "data", "verify", f"{out}/test") == 0
    assert "360 samples, 0 problems" in capsys.readouterr().err
    sheet = tmp_path / "sheet.png"
    assert run(monkeypatch, "data", "preview", f"{out}/test", str(sheet)) == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert run(monkeypatch, "data", "import", "digits", out) == 2
    assert "exists" in capsys.readouterr().err


def test_pretrain_evaluate_report(
    monkeypatch: Patch, capsys: Captured, tmp_path: Path, tiny: list[str]
) -> None:
    where = str(tmp_path / "run")
    changes = [*tiny, "trainer.workers=1", "trainer.stop.epochs=1"]
    assert run(monkeypatch, "pretrain", "simclr/digits", *changes, "--run", where) == 0
    shown = capsys.readouterr()
    assert f"raycl evaluate {where}" in shown.out and "epoch 1.0/1" in shown.err
    assert run(monkeypatch, "evaluate", where, "--protocol", "knn", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["protocol"] for row in rows} == {"knn"}
    assert run(monkeypatch, "evaluate", where) == 0
    assert "trained encoder" in capsys.readouterr().out
    assert run(monkeypatch, "report", where) == 0
    assert (tmp_path / "run" / "report.html").is_file()
