"""One file per published system; plain PyTorch, nothing of Ray."""

from __future__ import annotations

from raycl.methods.barlow_twins import BarlowTwins
from raycl.methods.base import Batch, DataInfo, Method, Output, Step, Stream
from raycl.methods.byol import BYOL
from raycl.methods.cvsa import CVSA
from raycl.methods.densecl import DenseCL
from raycl.methods.dino import DINO
from raycl.methods.fcn import FCN
from raycl.methods.moco import MoCo
from raycl.methods.moco_v3 import MoCoV3
from raycl.methods.mvgrl import MVGRL
from raycl.methods.nnclr import NNCLR
from raycl.methods.rcnn import RCNN
from raycl.methods.simclr import SimCLR
from raycl.methods.simsiam import SimSiam
from raycl.methods.supcon import SupCon
from raycl.methods.supervised import Supervised
from raycl.methods.swav import SwAV
from raycl.methods.vicreg import VICReg

__all__ = [
    "BYOL",
    "CVSA",
    "DINO",
    "FCN",
    "MVGRL",
    "NNCLR",
    "RCNN",
    "BarlowTwins",
    "Batch",
    "DataInfo",
    "DenseCL",
    "Method",
    "MoCo",
    "MoCoV3",
    "Output",
    "SimCLR",
    "SimSiam",
    "Step",
    "Stream",
    "SupCon",
    "Supervised",
    "SwAV",
    "VICReg",
]
