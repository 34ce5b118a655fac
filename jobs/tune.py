"""Search the fields of a recipe on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python jobs/tune.py simclr/cifar10-sweep --sweep /shared/sweep

It is `raycl tune`, with the same arguments. Ray sets RAY_ADDRESS for a submitted job, so the
workers run on that cluster; the run directory and the data must be reachable from all its nodes.
"""

from __future__ import annotations

import sys

from raycl.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "tune")
    main()
