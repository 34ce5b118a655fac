"""One file per published system; plain PyTorch, nothing of Ray."""

from __future__ import annotations

from raycl.methods.base import Batch, DataInfo, Method, Output, Step, Stream
from raycl.methods.simclr import SimCLR

__all__ = ["Batch", "DataInfo", "Method", "Output", "SimCLR", "Step", "Stream"]
