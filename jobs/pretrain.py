"""Pretrain a recipe on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python jobs/pretrain.py simclr/cifar10 --run /shared/run

It is `raycl pretrain`, with the same arguments. Ray sets RAY_ADDRESS for a submitted job, so the
workers run on that cluster; the run directory and the data must be reachable from all its nodes.
"""

from __future__ import annotations

import sys

from raycl.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "pretrain")
    main()
