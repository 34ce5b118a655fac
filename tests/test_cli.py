"""The command line as a user meets it: what it prints, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import get_args

import pytest

import raycl
from raycl import cli, sections
from raycl.beton import JSONField, Writer
from raycl.cli import main
from raycl.data import sink


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


def test_the_version(monkeypatch: Patch, capsys: Captured) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"raycl {raycl.__version__}\n"


def test_the_choices_are_those_of_the_recipe_and_the_importers() -> None:
    assert [protocol.value for protocol in cli.Protocol] == list(get_args(sections.Protocol))
    assert [importer.value for importer in cli.data.Importer] == list(sink.KINDS)


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
        (["embed", "/nowhere", "data", "out"], "/nowhere"),
        (["embed", "/nowhere", "data", "out", "--part", "0"], "Invalid value for '--part'"),
        (["report", "/nowhere"], "holds no recipe.yaml"),
        (["data", "info", "/nowhere"], "there is no such"),
        (["data", "import", "npz", "out"], "SRC OUT is needed"),
        (["data", "import", "imagefolder", "/nowhere", "/tmp/never"], "/nowhere"),
        (["data", "import", "npz", "/nowhere", "out", "--write-mode", "smart"], "smart_threshold"),
        (["data", "import", "video", "/nowhere", "out", "--label-column", "x"], "label_column"),
        (["data", "reshard", "out"], "data reshard: SRC OUT is needed, given was out"),
        (["data", "concat", "/nowhere", "out"], "there is no such"),
        (["data", "convert", "/nowhere", "out", "--write-mode", "png"], "Invalid value"),
        (["data", "saliency", "out"], "data saliency: SRC OUT is needed, given was out"),
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


def test_data_sets_are_written_again(monkeypatch: Patch, capsys: Captured, digits: Path) -> None:
    test, out = str(digits / "test"), digits.parent
    small = ["--write-mode", "jpg", "--max-resolution", "16", "--jpeg-quality", "80"]
    assert run(monkeypatch, "data", "reshard", test, f"{out}/a", "--shard-samples", "200") == 0
    assert f"{out}/a: 360 samples in 2 shards" in capsys.readouterr().out
    assert run(monkeypatch, "data", "concat", f"{out}/a", test, f"{out}/b") == 0
    assert f"{out}/b: 720 samples in 3 shards" in capsys.readouterr().out
    assert run(monkeypatch, "data", "convert", f"{out}/b", f"{out}/c", *small) == 0
    assert f"{out}/c: 720 samples in 1 shards" in capsys.readouterr().out
    assert run(monkeypatch, "data", "verify", f"{out}/c") == 0
    assert run(monkeypatch, "data", "saliency", f"{out}/c", f"{out}/d") == 0
    assert f"{out}/d: 720 samples in 1 shards" in capsys.readouterr().out
    assert run(monkeypatch, "data", "saliency", f"{out}/d", f"{out}/e") == 2
    assert "has a field 'mask' already" in capsys.readouterr().err


def test_verify_lists_what_is_wrong(monkeypatch: Patch, capsys: Captured, tmp_path: Path) -> None:
    fields = {"note": JSONField()}
    for name in ("a", "b"):
        with Writer(tmp_path / f"{name}.beton", fields, page_size=2 << 20) as writer:
            for number in range(3):
                writer.write({"note": number})
    content = bytearray((tmp_path / "a.beton").read_bytes())
    content[2 << 20] = ord("?")
    (tmp_path / "a.beton").write_bytes(content)
    (tmp_path / "b.beton").write_bytes(b"short")
    assert run(monkeypatch, "data", "verify", str(tmp_path), "--threads", "2") == 1
    shown = capsys.readouterr()
    first, second = shown.out.splitlines()
    assert "a.beton: sample 0, field 'note': not JSON" in first
    assert "b.beton: truncated or not a .beton file" in second
    assert "3 samples, 2 problems" in shown.err


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
    assert run(monkeypatch, "evaluate", where, "--against", where, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cka"] == pytest.approx(1, abs=1e-6)
    assert run(monkeypatch, "report", where) == 0
    assert (tmp_path / "run" / "report.html").is_file()
