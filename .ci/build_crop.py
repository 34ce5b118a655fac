"""Compiles raycl/views/crop.c where there is a C compiler; without it raycl resizes with torch."""

from __future__ import annotations

import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("raycl/views/crop.c")


class CropBuildHook(BuildHookInterface[Any]):
    """Puts the extension beside its source, for editable installs, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        target = SOURCE.with_name(f"_crop{sysconfig.get_config_var('EXT_SUFFIX')}")
        compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")[0]
        include = f"-I{sysconfig.get_path('include')}"
        command = [compiler, "-O3", "-shared", "-fPIC", include, str(SOURCE), "-o", str(target)]
        try:
            subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            self.app.display_warning(f"{SOURCE} was not compiled, crops will be slower: {reason}")
            return
        build_data["artifacts"].append(target.as_posix())
        build_data |= {"pure_python": False, "infer_tag": True}
