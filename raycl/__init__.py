"""raycl pretrains, tunes and evaluates contrastive and self-supervised models on Ray.

Importing this package imports neither torch nor ray. The container (`raycl.beton`) needs NumPy
alone; methods, losses and views (`raycl.methods`, `raycl.nn`, `raycl.views`) are plain PyTorch.
"""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("raycl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
