"""One file per published system; plain PyTorch, nothing of Ray."""

from __future__ import annotations

from raycl.methods.barlow_twins import BarlowTwins
from raycl.methods.base import Batch, DataInfo, Method, Output, Step, Stream
from raycl.methods.byol import BYOL
from raycl.methods.densecl import DenseCL
from raycl.methods.moco import MoCo
from raycl.methods.simclr import SimCLR
from raycl.methods.simsiam import SimSiam
from raycl.methods.vicreg import VICReg

__all__ = [
    "BYOL",
    "BarlowTwins",
    "Batch",
    "DataInfo",
    "DenseCL",
    "Method",
    "MoCo",
    "Output",
    "SimCLR",
    "SimSiam",
    "Step",
    "Stream",
    "VICReg",
]
