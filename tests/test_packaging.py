"""What a newcomer gets: a light command, a whole wheel, pins that name no host."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import raycl

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"matplotlib", "numpy", "pyarrow", "pydantic", "ray", "sklearn", "torch", "torchvision"}
HELP = "import sys; sys.argv = ['raycl', '--help']; from raycl.cli import main; main()"
REPORT_IMPORTS = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules}))))
"""


def interpret(code: str) -> tuple[str, set[str]]:
    """What a fresh interpreter prints, and the top-level packages that it has imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT_IMPORTS + code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    *lines, loaded = done.stdout.splitlines()
    return "\n".join(lines), set(json.loads(loaded))


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


@pytest.mark.parametrize("code", ["import raycl; raycl.__version__", HELP], ids=["import", "help"])
def test_looking_around_imports_nothing_heavy(code: str) -> None:
    _, loaded = interpret(code)
    assert not loaded & HEAVY


def test_help_lists_the_commands() -> None:
    text, _ = interpret(HELP)
    for command in ("pretrain", "evaluate", "report", "demo", "data", "recipes"):
        assert re.search(rf"^\W*{command}\b", text, re.MULTILINE)


def test_help_is_quick() -> None:
    """Under 0.5 s on an idle machine; the bound leaves room for a busy one."""

    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True, cwd=ROOT)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 1.5


def test_the_container_needs_numpy_alone() -> None:
    _, loaded = interpret("import raycl.beton")
    assert loaded & (HEAVY | {"PIL", "simplejpeg"}) == {"numpy"}


def test_the_command_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="raycl")
    assert script.load().__module__ == "raycl.cli"
    assert raycl.__version__ == version("raycl")
    with pytest.raises(AttributeError, match="no attribute 'tensor'"):
        _ = raycl.tensor


def test_the_wheel_holds_recipes_and_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        inside = set(wheel.namelist())
    sources = [*(ROOT / "raycl").rglob("*.py"), *(ROOT / "raycl" / "recipes").rglob("*.yaml")]
    expected = {path.relative_to(ROOT).as_posix() for path in sources}
    assert "raycl/recipes/simclr/digits.yaml" in expected
    assert inside >= expected | {"raycl/py.typed"}
    if shutil.which("cc"):
        assert f"raycl/views/_crop{sysconfig.get_config_var('EXT_SUFFIX')}" in inside
    assert not {name for name in inside if not re.match(r"raycl(/|-[^/]+\.dist-info/)", name)}


def test_a_machine_without_a_compiler_gets_a_wheel_of_python_alone(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT,
        tmp_path / "raycl",
        ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache", "*.so", "build"),
    )
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "raycl",
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "crop.c was not compiled" in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("-py3-none-any.whl")


def test_pins_are_versions_and_nothing_else() -> None:
    for name, requirement in pins().items():
        assert requirement.url is None, name
        assert re.fullmatch(r"==[\w.!+]+", str(requirement.specifier)), name
        assert "+" not in str(requirement.specifier), f"{name}: a local build is on no registry"


def test_pins_cover_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = pins()
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        asked = Requirement(line)
        (pin,) = pinned[canonicalize_name(asked.name)].specifier
        assert asked.specifier.contains(pin.version, prereleases=True), line
